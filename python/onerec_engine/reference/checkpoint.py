"""Random weights and checkpoint directories (docs/checkpoint_format.md)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from onerec_engine.config import OneRecV2Config, load_config
from onerec_engine.reference.model import OneRecV2
from onerec_engine.weights import expected_tensors

__all__ = ["load_model", "random_state_dict", "random_tensor", "save_checkpoint"]


def random_state_dict(config: OneRecV2Config, seed: int = 0, scale: float = 1.0) -> dict[str, Tensor]:
    """FP32 weights with healthy activations, for tests: logits of standard deviation about 1.5 * `scale`.

    Linear weights have variance 1 / inputs, output projections less so that the residual stream stays near 1;
    gains lie in [0.5, 1.5], biases are about 0.1 and the router's correction bias about 0.05.

    Args:
        config: the model.
        seed: of the generator.
        scale: factor on the heads' weights.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = {spec.name: spec.shape for spec in expected_tensors(config)}
    return {name: random_tensor(config, name, shapes[name], generator, scale) for name in sorted(shapes)}


def random_tensor(
    config: OneRecV2Config, name: str, shape: tuple[int, ...], generator: torch.Generator, scale: float = 1.0
) -> Tensor:
    """One of the weights of `random_state_dict`, FP32 on the generator's device."""
    value = torch.randn(shape, generator=generator, device=generator.device)
    if "norm" in name:
        return 1.0 + 0.5 * torch.tanh(value)
    if name.endswith("e_score_correction_bias"):
        return value * 0.05
    if name.endswith(".bias"):
        return value * 0.1
    if "embedding" in name or ".fields." in name:
        return value * (0.3 if "position_embedding" in name else 1.0)
    value /= math.sqrt(shape[-1])
    if name.startswith("lm_heads."):
        value *= 1.4 * scale
    elif name.endswith(("o_proj.weight", "down_proj.weight")):
        value *= 2.0 * (1.0 / math.sqrt(3.0 * config.num_hidden_layers))
    return value


def save_checkpoint(
    directory: str | Path,
    config: OneRecV2Config,
    state_dict: Mapping[str, Tensor],
    item_ids: npt.ArrayLike,
    semantic_ids: npt.ArrayLike,
    dtype: torch.dtype = torch.bfloat16,
    *,
    keep_fp32: bool = False,
    max_shard_bytes: int | None = None,
) -> None:
    """Writes config.json, the weights and catalogue.npz.

    Args:
        directory: made if missing.
        config: the model.
        state_dict: its weights under the checkpoint's names.
        item_ids: integers [n].
        semantic_ids: integers [n, T].
        dtype: storage type of the weights.
        keep_fp32: store gains, biases and correction biases in FP32 whatever `dtype` is.
        max_shard_bytes: split the weights into shards of at most this size (one tensor at least).
    """
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    raw = config.to_dict() | {"torch_dtype": str(dtype).removeprefix("torch.")}
    (path / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    vectors = {spec.name for spec in expected_tensors(config) if spec.kind == "vector"}
    tensors = {}
    for name, value in state_dict.items():
        kept = torch.float32 if keep_fp32 and name in vectors else dtype
        # A clone: views of stacked experts share memory, which safetensors refuses.
        tensors[name] = value.detach().to("cpu", kept, copy=True).contiguous()
    _save_tensors(path, tensors, max_shard_bytes)
    np.savez(
        path / "catalogue.npz",
        item_ids=np.asarray(item_ids, dtype=np.int64),
        semantic_ids=np.asarray(semantic_ids),
    )


def load_model(directory: str | Path, dtype: torch.dtype = torch.float32) -> OneRecV2:
    """Reads a checkpoint of 16- or 32-bit weights (one file or shards) into a model in evaluation mode.

    Args:
        directory: the checkpoint.
        dtype: what to convert the weights to.
    """
    path = Path(directory)
    index = path / "model.safetensors.index.json"
    files = ["model.safetensors"]
    if index.exists():
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= load_file(path / file)
    return OneRecV2.from_state_dict(load_config(path), {k: v.float() for k, v in tensors.items()}).to(dtype)


def _save_tensors(path: Path, tensors: dict[str, Tensor], limit: int | None) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    used = 0
    for name, value in tensors.items():
        size = value.numel() * value.element_size()
        if limit is not None and shards[-1] and used + size > limit:
            shards.append({})
            used = 0
        shards[-1][name] = value
        used += size
    if limit is None:
        save_file(shards[0], path / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, path / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    total = sum(v.numel() * v.element_size() for v in tensors.values())
    raw = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
