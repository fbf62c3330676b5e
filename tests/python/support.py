"""Tiny checkpoints made with NumPy alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onerec_engine._safetensors import write_safetensors
from onerec_engine.config import OneRecV2Config
from onerec_engine.weights import expected_tensors

Weights = dict[str, npt.NDArray[np.float32]]


def pathway(name: str = "recent", **changes: Any) -> dict[str, Any]:
    """An items pathway as config.json has it."""
    return {"name": name, "kind": "items", "max_tokens": 6, "position_embedding": "recency"} | changes


def tiny_config(**changes: Any) -> OneRecV2Config:
    """A model of a few thousand parameters."""
    raw: dict[str, Any] = {
        "model_type": "onerec_v2",
        "codebook_sizes": [8, 6, 7],
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 16,
        "intermediate_size": 48,
        "embed_dim": 5,
        "pathways": [pathway()],
    }
    return OneRecV2Config.from_dict(raw | changes)


MOE: dict[str, Any] = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}

EVERYTHING: dict[str, Any] = MOE | {
    "num_key_value_heads": 1,
    "num_context_kv_layers": 2,
    "context_kv_split": 2,
    "num_context_kv_heads": 1,
    "qk_norm": True,
    "attention_bias": True,
    "mlp_bias": True,
    "lm_head_bias": True,
    "decoder_position_embedding": "learned",
    "pathways": [
        {
            "name": "user",
            "kind": "static",
            "fields": [
                {"kind": "categorical", "name": "age", "num_embeddings": 10, "embedding_dim": 4},
                {"kind": "dense", "name": "stats", "dim": 3},
            ],
        },
        pathway(
            fields=[
                {"kind": "categorical", "name": "action", "num_embeddings": 5, "embedding_dim": 2},
                {"kind": "dense", "name": "seconds", "dim": 1},
            ],
            bias=True,
            hidden_sizes=[24],
        ),
        pathway("long", source="long_term", max_tokens=9, position_embedding="absolute"),
    ],
}


def random_weights(config: OneRecV2Config, seed: int = 0) -> Weights:
    """Values that keep activations near 1."""
    rng = np.random.default_rng(seed)
    out: Weights = {}
    for spec in expected_tensors(config):
        values = rng.standard_normal(spec.shape, np.float32)
        if spec.kind == "vector":
            values = values * np.float32(0.1) + np.float32("norm" in spec.name)
        elif spec.kind != "table":
            values = values * np.float32(1.5 / np.sqrt(spec.shape[1]))
        out[spec.name] = values
    return out


def random_catalogue(config: OneRecV2Config, items: int, seed: int = 0) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Scattered ids in random order, and codes; some items share theirs."""
    rng = np.random.default_rng(seed)
    ids = rng.choice(10 * items + 10, items, replace=False).astype(np.int64) - 5
    return ids, np.column_stack([rng.integers(0, size, items) for size in config.codebook_sizes]).astype(np.uint16)


def to_bytes(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[np.uint8]:
    """Values rounded to nearest even."""
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    if dtype == "F32":
        return flat.view(np.uint8)
    if dtype == "F16":
        return flat.astype(np.float16).view(np.uint8)
    bits = flat.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).view(np.uint8)


def write_weights(file: Path, tensors: Mapping[str, tuple[str, npt.NDArray[Any]]]) -> None:
    """A safetensors file of dtype and values per name; values of F8_E4M3 are codes."""
    write_safetensors(
        file,
        {name: (dtype, values.shape) for name, (dtype, values) in tensors.items()},
        (
            (name, values.reshape(-1) if dtype == "F8_E4M3" else to_bytes(values, dtype))
            for name, (dtype, values) in tensors.items()
        ),
    )


def write_checkpoint(
    directory: Path,
    config: OneRecV2Config | None = None,
    *,
    seed: int = 0,
    dtype: str = "BF16",
    items: int = 40,
    shards: int = 1,
    weights: Weights | None = None,
    catalogue: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    generation: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a checkpoint directory and returns it."""
    config = config or tiny_config()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config.to_dict()))
    tensors = {name: (dtype, values) for name, values in (weights or random_weights(config, seed)).items()}
    if shards == 1:
        write_weights(directory / "model.safetensors", tensors)
    else:
        names = list(tensors)
        weight_map: dict[str, str] = {}
        for i in range(shards):
            file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
            write_weights(directory / file, {name: tensors[name] for name in names[i::shards]})
            weight_map |= dict.fromkeys(names[i::shards], file)
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    item_ids, semantic_ids = catalogue or random_catalogue(config, items, seed)
    np.savez(directory / "catalogue.npz", item_ids=np.asarray(item_ids), semantic_ids=np.asarray(semantic_ids))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return directory
