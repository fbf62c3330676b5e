"""Reading sound checkpoints, and one error that lists everything wrong with an unsound one."""

from __future__ import annotations

import json
import shutil
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import EVERYTHING, MOE, random_weights, tiny_config, to_bytes, write_checkpoint, write_weights

from onerec_engine._safetensors import write_safetensors
from onerec_engine.checkpoint import Checkpoint
from onerec_engine.errors import CheckpointError, ConfigError
from onerec_engine.float_formats import to_float32
from onerec_engine.schemes import get_scheme
from onerec_engine.weights import expected_tensors

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_reads_every_tensor(dtype: str, shards: int, tmp_path: Path) -> None:
    config = tiny_config(**EVERYTHING)
    weights = random_weights(config)
    write_checkpoint(tmp_path, config, dtype=dtype, shards=shards, weights=weights)
    with Checkpoint(tmp_path) as checkpoint:
        assert checkpoint.config == config
        assert checkpoint.scheme is None
        assert [spec.name for spec in checkpoint.specs] == list(weights)
        for name, values in weights.items():
            assert checkpoint.dtype(name) == dtype
            raw = checkpoint.read(name)
            np.testing.assert_array_equal(raw, to_bytes(values, dtype))
            want = torch.from_numpy(values).to(DTYPES[dtype]).float().numpy()
            np.testing.assert_array_equal(checkpoint.read_float32(name), want)
            assert checkpoint.read_scales(name) is None
        assert checkpoint.weight_bytes == sum(v.size for v in weights.values()) * (4 if dtype == "F32" else 2)


def test_reads_what_safetensors_writes(tmp_path: Path) -> None:
    config = tiny_config()
    write_checkpoint(tmp_path, config)
    tensors = {name: torch.from_numpy(values).bfloat16() for name, values in random_weights(config, 7).items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with Checkpoint(tmp_path) as checkpoint:
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(checkpoint.read_float32(name), tensor.float().numpy())


def test_safetensors_reads_what_we_write(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 127, (3, 5)).astype(np.uint8)
    odd = rng.standard_normal((7,), np.float32)
    write_weights(
        tmp_path / "a.safetensors",
        {"codes": ("F8_E4M3", codes), "odd": ("BF16", odd), "scale": ("F32", odd), "none": ("F32", odd[:0])},
    )
    tensors = load_file(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(tensors["codes"].view(torch.uint8).numpy(), codes)
    np.testing.assert_array_equal(tensors["odd"].float(), torch.from_numpy(odd).bfloat16().float())
    np.testing.assert_array_equal(tensors["scale"], odd)
    assert tensors["none"].numel() == 0


def test_a_broken_writer_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    layout: dict[str, tuple[str, tuple[int, ...]]] = {"a": ("F32", (2,)), "b": ("F32", (1,))}
    four = np.zeros(4, np.uint8)
    for values in ([("a", four)], [("b", four)], [("b", four), ("b", four)]):
        with pytest.raises(ValueError, match="safetensors"):
            write_safetensors(file, layout, values)
        assert list(tmp_path.iterdir()) == []


def test_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    config = tiny_config(num_hidden_layers=8, hidden_size=128, intermediate_size=512)
    write_checkpoint(tmp_path, config)
    with Checkpoint(tmp_path) as checkpoint:
        total = checkpoint.weight_bytes
        tracemalloc.start()
        for spec in checkpoint.specs:
            checkpoint.read(spec.name)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 2 * 128 * 512 * 2 < total / 4


def test_closed_files_are_closed(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=2)
    checkpoint = Checkpoint(tmp_path)
    checkpoint.close()
    checkpoint.close()
    with pytest.raises(KeyError, match="want the name of a tensor"):
        checkpoint.read("nothing")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts open files in /proc")
def test_failures_leak_no_files(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=3)
    (tmp_path / "model-00003-of-00003.safetensors").write_bytes(b"")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        with pytest.raises(CheckpointError):
            Checkpoint(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# --- everything wrong at once ---


def _rewrite(directory: Path, **changes: tuple[str, Any] | None) -> None:
    config = tiny_config()
    tensors: dict[str, Any] = {name: ("BF16", values) for name, values in random_weights(config).items()}
    for name, change in changes.items():
        tensors.pop(name, None)
        if change is not None:
            tensors[name] = change
    write_weights(directory / "model.safetensors", tensors)


def test_lists_all_tensors_at_fault(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    wrong: dict[str, tuple[str, Any] | None] = {
        "model.bos_embedding": None,
        "lm_heads.2.weight": None,
        "model.extra.weight": ("F32", np.zeros(3, np.float32)),
        "model.layers.7.mlp_norm.weight": ("F32", np.zeros(32, np.float32)),
        "lm_heads.0.weight": ("BF16", np.zeros((9, 32), np.float32)),
        "model.output_norms.0.weight": ("F32", np.zeros((1, 32), np.float32)),
        "lm_heads.1.weight": ("F8_E4M3", np.zeros((6, 32), np.uint8)),
    }
    _rewrite(tmp_path, **wrong)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(tmp_path)
    message = str(caught.value)
    for name in wrong:
        assert name in message
    for phrase in ("missing:", "not in this model:", "wrong shape:", "[9, 32], want [8, 32]", "F8_E4M3, want F32 or"):
        assert phrase in message


def test_long_lists_are_cut(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    write_weights(tmp_path / "model.safetensors", {"x": ("F32", np.zeros(1, np.float32))})
    with pytest.raises(CheckpointError, match=r"and [0-9]+ more") as caught:
        Checkpoint(tmp_path)
    assert len(str(caught.value)) < 4000


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["model.layers.1.mlp_norm.weight", "context.k_norms.0.weight"])
def test_norms_have_to_be_finite(name: str, value: float, tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    gain = np.ones(32, np.float32)
    gain[5] = value
    _rewrite(tmp_path, **{name: ("BF16", gain)})
    with pytest.raises(CheckpointError, match=f"'{name}' holds NaN or infinities"):
        Checkpoint(tmp_path)


# --- the directory ---


def test_directory_has_to_exist(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path / "a\0b"):
        with pytest.raises(CheckpointError, match="found no directory"):
            Checkpoint(path)
    with pytest.raises(ConfigError, match=r"found no .*config.json"):
        Checkpoint(tmp_path)


def test_weights_have_to_exist_once(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=2)
    shutil.copy(tmp_path / "model-00001-of-00002.safetensors", tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="found both"):
        Checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match="found neither"):
        Checkpoint(tmp_path)


def test_a_link_to_the_directory_is_followed(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with Checkpoint(tmp_path / "link") as checkpoint:
        assert checkpoint.path == (tmp_path / "real").resolve()


def _read_all(checkpoint: Checkpoint) -> None:
    for spec in checkpoint.specs:
        checkpoint.read(spec.name)


def test_shrinking_files_are_noticed(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    with Checkpoint(tmp_path) as checkpoint:
        with open(tmp_path / "model.safetensors", "r+b") as file:
            file.truncate(3000)
        with pytest.raises(CheckpointError, match="changed while it was read"):
            _read_all(checkpoint)


# --- pre-quantised weights ---


def _quantized(directory: Path, scheme_name: str, **changes: tuple[str, Any]) -> None:
    """Codes of 1 and scales of 0.5 for everything a scheme quantises, ones for the rest."""
    scheme = get_scheme(scheme_name)
    config = tiny_config(**MOE)
    write_checkpoint(directory, config)
    raw = config.to_dict() | {"quantization_config": scheme.to_config()}
    (directory / "config.json").write_text(json.dumps(raw))
    tensors: dict[str, tuple[str, Any]] = {}
    for spec in expected_tensors(config):
        scales = scheme.scales_spec(spec)
        if scales is None:
            tensors[spec.name] = ("BF16", np.ones(spec.shape, np.float32))
        else:
            tensors[spec.name] = ("F8_E4M3", np.full(spec.shape, 0x38, np.uint8))
            tensors[scales.name] = ("F32", np.full(scales.shape, 0.5, np.float32))
    write_weights(directory / "model.safetensors", tensors | changes)


@pytest.mark.parametrize("name", ["fp8", "fp8_channel"])
def test_reads_quantised_weights(name: str, tmp_path: Path) -> None:
    _quantized(tmp_path, name)
    with Checkpoint(tmp_path) as checkpoint:
        assert checkpoint.scheme is get_scheme(name)
        assert checkpoint.dtype("model.layers.0.mlp.up_proj.weight") == "F8_E4M3"
        assert checkpoint.dtype("lm_heads.0.weight") == "BF16"
        expert = "model.layers.1.mlp.experts.0.up_proj.weight"
        scales = checkpoint.read_scales(expert)
        assert scales is not None
        assert scales.shape == ((1, 1) if name == "fp8" else (32,))
        assert (checkpoint.read_float32(expert) == 0.5).all()


def test_scheme_and_tensors_have_to_agree(tmp_path: Path) -> None:
    _quantized(tmp_path, "fp8")
    raw = json.loads((tmp_path / "config.json").read_text())
    del raw["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=r"not in this model: .*_scale.*wrong dtype: .*F8_E4M3, want F32 or"):
        Checkpoint(tmp_path)
    raw["quantization_config"] = get_scheme("fp8_channel").to_config()
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=r"wrong shape: .*experts.*_scale \[1, 1\], want \[32\]"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "NaN or inf"), (np.inf, "NaN or inf"), (0.0, "not positive"), (-1.0, "not positive")],
)
def test_scales_have_to_be_positive(value: float, message: str, tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.weight_scale"
    scales = np.ones(32, np.float32)
    scales[31] = value
    _quantized(tmp_path, "fp8", **{name: ("F32", scales)})
    with pytest.raises(CheckpointError, match=f"'{name}' holds .*{message}"):
        Checkpoint(tmp_path)


def test_scales_have_to_be_float32(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.weight_scale"
    _quantized(tmp_path, "fp8", **{name: ("BF16", np.ones(32, np.float32))})
    with pytest.raises(CheckpointError, match=f"wrong dtype: {name} BF16, want F32"):
        Checkpoint(tmp_path)


def test_dequantises_like_the_definition(tmp_path: Path) -> None:
    codes = np.arange(256, dtype=np.uint8).reshape(2, 128)
    want = torch.from_numpy(codes).view(torch.float8_e4m3fn).float().numpy() * np.float32([[2], [3]])
    got = to_float32(codes.reshape(-1), "F8_E4M3", (2, 128), np.float32([2, 3]))
    np.testing.assert_array_equal(got, want)
