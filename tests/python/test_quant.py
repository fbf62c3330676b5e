"""Quantisation schemes: names, config.json, codes against an independent quantiser, and pre-quantised checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors import safe_open
from support import MOE, random_weights, tiny_config, to_bytes, write_checkpoint, write_weights

from onerec_engine import quant, schemes
from onerec_engine.checkpoint import Checkpoint
from onerec_engine.engine import Engine, Request
from onerec_engine.errors import CheckpointError, ConfigError
from onerec_engine.float_formats import e4m3_values
from onerec_engine.quant import get_scheme, quantize_checkpoint, scheme_from_config, scheme_names
from onerec_engine.schemes import QuantizationScheme
from onerec_engine.weights import TensorSpec, expected_tensors

WIDE = tiny_config(hidden_size=160, head_dim=80, intermediate_size=208, **(MOE | {"moe_intermediate_size": 144}))


# --- names and config.json ---


def test_registry() -> None:
    assert scheme_names() == ("fp8", "fp8_channel")
    for name in scheme_names():
        assert get_scheme(name).name == name
        assert scheme_from_config(get_scheme(name).to_config()) is get_scheme(name)
    assert scheme_from_config(None) is None
    for name in ("int4", None, ["fp8"]):
        with pytest.raises(ValueError, match="want None or one of"):
            get_scheme(name)  # type: ignore[arg-type]


def test_a_new_scheme_is_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemes, "_SCHEMES", dict(schemes._SCHEMES))

    @quant.register
    class Heads(type(get_scheme("fp8"))):  # type: ignore[misc]
        name = "fp8_heads"

        def granularity(self, kind: str) -> Any:
            return "channel" if kind == "head" else super().granularity(kind)

        def to_config(self) -> dict[str, Any]:
            return super().to_config() | {"heads": "channel"}

    assert get_scheme("fp8_heads").scales_spec(TensorSpec("lm_heads.0.weight", (8, 32), "head")) is not None
    with pytest.raises(ValueError, match="second scheme named 'fp8_heads'"):
        quant.register(Heads)


def test_config_may_leave_out_or_reorder_what_follows() -> None:
    config = get_scheme("fp8").to_config()
    config["modules_to_not_convert"] = list(reversed(config["modules_to_not_convert"]))
    assert scheme_from_config(config) is get_scheme("fp8")
    del config["modules_to_not_convert"]
    assert scheme_from_config(config) is get_scheme("fp8")


@pytest.mark.parametrize(
    "change",
    [
        {"quant_method": "gptq"},
        {"format": "e5m2"},
        {"linear": "block"},
        {"experts": "row"},
        {"activation_scheme": "static"},
        {"modules_to_not_convert": []},
        {"modules_to_not_convert": 3},
        {"modules_to_not_convert": [3]},
        {"bits": 8},
        {"experts": {"a": []}},
    ],
)
def test_unknown_configs(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="quantization_config"):
        scheme_from_config(get_scheme("fp8").to_config() | change)


def test_what_is_quantised() -> None:
    for spec in expected_tensors(tiny_config(**MOE)):
        block, channel = (get_scheme(name).scales_spec(spec) for name in scheme_names())
        decoder = spec.name.startswith("model.layers.") and spec.name.endswith("_proj.weight")
        assert (block is not None) == (channel is not None) == decoder, spec.name
        if decoder:
            assert block is not None
            assert channel is not None
            assert channel == TensorSpec(f"{spec.name}_scale", (spec.shape[0],), "vector")
            assert block.shape == ((1, 1) if ".experts." in spec.name else channel.shape)


# --- codes ---


def _nearest(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """E4M3 by looking for the nearest of all 127 magnitudes, ties to the even code."""
    table = e4m3_values()[:127].astype(np.float64)
    magnitude = np.minimum(np.abs(values.astype(np.float64)), 448.0)
    above = np.clip(np.searchsorted(table, magnitude), 1, 126)
    low, high = magnitude - table[above - 1], table[above] - magnitude
    code = np.where((low < high) | ((low == high) & (above % 2 == 1)), above - 1, above)
    return (code + np.where(np.signbit(values), 128, 0)).astype(np.uint8)


def _by_definition(values: npt.NDArray[np.float32], rows: int, columns: int) -> tuple[Any, Any]:
    """docs/numerics.md for groups of rows x columns, one group at a time."""
    codes = np.empty(values.shape, np.uint8)
    grid = [range(0, size, step) for size, step in zip(values.shape, (rows, columns), strict=True)]
    scales = np.empty([len(steps) for steps in grid], np.float32)
    for i, r in enumerate(grid[0]):
        for j, c in enumerate(grid[1]):
            group = values[r : r + rows, c : c + columns]
            scale = max(np.abs(group).max() / np.float32(448), np.float32(1e-12))
            scales[i, j] = scale
            codes[r : r + rows, c : c + columns] = _nearest(group * (np.float32(1) / scale))
    return codes, scales


@pytest.mark.parametrize("shape", [(1, 1), (16, 128), (130, 260), (256, 129)])
@pytest.mark.parametrize("spread", [1e-30, 1.0, 1e30])
def test_quantisers_follow_the_definition(shape: tuple[int, int], spread: float) -> None:
    rng = np.random.default_rng(shape[0])
    values = (rng.standard_normal(shape) * spread * 10.0 ** rng.integers(-4, 4, shape)).astype(np.float32)
    values[0, 0] = 0
    spec = TensorSpec("x.weight", shape, "linear")
    codes, scales = get_scheme("fp8").quantize(spec, values)
    want, want_scales = _by_definition(values, 1, shape[1])
    np.testing.assert_array_equal(codes, want)
    np.testing.assert_array_equal(scales, want_scales[:, 0])
    codes, scales = get_scheme("fp8").quantize(TensorSpec("x.weight", shape, "expert"), values)
    want, want_scales = _by_definition(values, 128, 128)
    np.testing.assert_array_equal(codes, want)
    np.testing.assert_array_equal(scales, want_scales)


# --- checkpoints ---


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quant") / "plain"
    return write_checkpoint(path, WIDE, generation={"beam_width": 16})


@pytest.mark.parametrize("scheme", ["fp8", "fp8_channel"])
def test_written_checkpoint(scheme: str, source: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    quantize_checkpoint(source, tmp_path / "q", scheme=scheme, progress=lambda done, total: seen.append((done, total)))
    weights = random_weights(WIDE)
    assert seen == [(i + 1, len(weights)) for i in range(len(weights))]
    assert (tmp_path / "q/generation_config.json").read_bytes() == (source / "generation_config.json").read_bytes()
    assert (tmp_path / "q/catalogue.npz").read_bytes() == (source / "catalogue.npz").read_bytes()
    assert json.loads((tmp_path / "q/config.json").read_text())["quantization_config"] == get_scheme(scheme).to_config()
    with Checkpoint(source) as plain, Checkpoint(tmp_path / "q") as quantised:
        assert quantised.config == plain.config
        assert quantised.scheme is get_scheme(scheme)
        for spec in plain.specs:
            values = plain.read_float32(spec.name)
            if get_scheme(scheme).scales_spec(spec) is None:
                assert quantised.dtype(spec.name) == "BF16"
                np.testing.assert_array_equal(quantised.read_float32(spec.name), values)
                continue
            block = scheme == "fp8" and ".experts." in spec.name
            codes, scales = _by_definition(values, *((128, 128) if block else (1, values.shape[1])))
            np.testing.assert_array_equal(quantised.read(spec.name).reshape(spec.shape), codes)
            got = quantised.read_scales(spec.name)
            assert got is not None
            np.testing.assert_array_equal(got, scales if block else scales[:, 0])


def test_tensors_are_aligned(source: Path, tmp_path: Path) -> None:
    quantize_checkpoint(source, tmp_path / "q")
    with safe_open(tmp_path / "q/model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - no dict
            file.get_tensor(name)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("scheme", ["fp8", "fp8_channel"])
def test_same_answers_as_quantising_at_load(dtype: str, scheme: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "plain", WIDE, dtype=dtype)
    quantize_checkpoint(tmp_path / "plain", tmp_path / "q", scheme=scheme)
    answers = []
    for path, quantization in (("plain", scheme), ("q", None), ("q", scheme)):
        with Engine.from_checkpoint(tmp_path / path, quantization=quantization, threads=1) as engine:
            assert engine.precision == "fp8"
            assert engine.quantization == scheme
            batch = [Request(history=engine.catalogue.item_ids[:5]), Request(history=engine.catalogue.item_ids[7:20])]
            answers.append(engine.generate(batch, beam_width=20))
    for other in answers[1:]:
        np.testing.assert_array_equal(other.items, answers[0].items)
        np.testing.assert_array_equal(other.logprobs, answers[0].logprobs)


def test_shards(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantize_checkpoint(source, tmp_path / "one")
    monkeypatch.setattr(quant, "SHARD_BYTES", 60_000)
    quantize_checkpoint(source, tmp_path / "many")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    with Checkpoint(tmp_path / "one") as one, Checkpoint(tmp_path / "many") as many:
        for spec in one.specs:
            np.testing.assert_array_equal(one.read_float32(spec.name), many.read_float32(spec.name))


def test_reads_shards(source: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "plain", WIDE, shards=3)
    quantize_checkpoint(tmp_path / "plain", tmp_path / "q")
    quantize_checkpoint(source, tmp_path / "p")
    assert (tmp_path / "q/model.safetensors").read_bytes() == (tmp_path / "p/model.safetensors").read_bytes()


def test_refuses_what_is_quantised_already(source: Path, tmp_path: Path) -> None:
    quantize_checkpoint(source, tmp_path / "q")
    with pytest.raises(CheckpointError, match="quantised with 'fp8'"):
        quantize_checkpoint(tmp_path / "q", tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_refuses_a_full_destination(source: Path, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    for destination in (tmp_path, tmp_path / "x"):
        with pytest.raises(ValueError, match="not an empty directory"):
            quantize_checkpoint(source, destination)
    with pytest.raises(ValueError, match="'fp4'"):
        quantize_checkpoint(source, tmp_path / "q", scheme="fp4")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_refuses_weights_that_are_not_finite(value: float, tmp_path: Path) -> None:
    config = tiny_config()
    weights = random_weights(config)
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    write_checkpoint(tmp_path / "plain", config, weights=weights)
    with pytest.raises(CheckpointError, match=r"mlp\.up_proj\.weight holds NaN"):
        quantize_checkpoint(tmp_path / "plain", tmp_path / "q")
    assert not (tmp_path / "q/config.json").exists()
    assert not list((tmp_path / "q").glob("*.safetensors"))


@pytest.mark.parametrize(
    ("stored", "arguments", "message"),
    [
        ("fp8", {"quantization": "fp8_channel"}, "quantised with 'fp8'"),
        ("fp8", {"precision": "fp32"}, "precision 'fp32' with quantisation 'fp8'"),
        ("fp8", {"precision": "bf16"}, "precision 'bf16' with quantisation 'fp8'"),
        (None, {"quantization": "fp8", "precision": "fp32"}, "precision 'fp32' with quantisation"),
        (None, {"quantization": "int4"}, "want None or one of"),
        (None, {"precision": "fp16"}, "precision 'fp16', want None or one of"),
    ],
)
def test_precisions_that_contradict(
    stored: str | None, arguments: dict[str, str], message: str, source: Path, tmp_path: Path
) -> None:
    path = source
    if stored is not None:
        path = tmp_path / "q"
        quantize_checkpoint(source, path, scheme=stored)
    with pytest.raises(ValueError, match=message):
        Engine.from_checkpoint(path, **arguments)  # type: ignore[arg-type]


def test_fp8_with_bf16_for_the_rest(source: Path) -> None:
    with Engine.from_checkpoint(source, quantization="fp8", precision="bf16", threads=1) as engine:
        assert engine.precision == "fp8"


def test_helper_writes_codes(tmp_path: Path) -> None:
    codes = np.arange(6, dtype=np.uint8).reshape(2, 3)
    write_weights(tmp_path / "a.safetensors", {"a": ("F8_E4M3", codes)})
    assert (tmp_path / "a.safetensors").read_bytes()[-6:] == codes.tobytes()
    assert to_bytes(np.float32([1]), "BF16").tolist() == [0x80, 0x3F]
    assert isinstance(get_scheme("fp8"), QuantizationScheme)
