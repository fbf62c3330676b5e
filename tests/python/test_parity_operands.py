"""The engine's quantisers, and the operands of its matrix products, against the reference's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from engine_case import SIZED_MOE, Fed, emulated, open_engine, sized_model  # noqa: E402
from model_case import Case, summed  # noqa: E402
from model_grid import NAMED, small_config  # noqa: E402

from onerec_engine import _C  # noqa: E402
from onerec_engine.reference.quantize import (  # noqa: E402
    quantize_block_128x128,
    quantize_norm_rows,
    quantize_row_blocks,
    quantize_rows,
)
from onerec_engine.weights import expected_tensors  # noqa: E402


def adversarial(shape: tuple[int, int], seed: int) -> np.ndarray:
    """Values of all magnitudes, rows of zeros, and exact ties between neighbouring codes."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape) * np.exp(rng.standard_normal(shape) * rng.choice([0, 2, 6], size=(shape[0], 1)))
    x[rng.random(shape) < 0.1] = 0
    x *= np.exp2(rng.integers(-40, 20, size=(shape[0], 1)))
    steps = rng.integers(0, 255, size=shape[1]) / 16 * np.exp2(rng.integers(-10, 5, size=shape[1]))
    x[shape[0] // 2] = np.where(np.arange(shape[1]) % 128 == 0, 448, steps.clip(0, 440))
    x[-1] = rng.choice([0.0, -0.0, 1e-30, -1e-42, 3e-10], size=shape[1])
    return x.astype(np.float32)


@pytest.mark.parametrize("shape", [(1, 1), (2, 16), (5, 127), (64, 128), (7, 129), (129, 257), (300, 384), (128, 1000)])
def test_weight_quantisers_are_bit_exact(shape: tuple[int, int]):
    for seed in range(3):
        x = adversarial(shape, seed)
        for mine, theirs in [(_C.quantize_channel, quantize_rows), (_C.quantize_block, quantize_block_128x128)]:
            codes, scales = mine(x)
            want_codes, want_scales = theirs(torch.from_numpy(x))
            np.testing.assert_array_equal(codes, want_codes.numpy())
            np.testing.assert_array_equal(scales.view(np.uint32), want_scales.numpy().view(np.uint32))


@pytest.mark.parametrize(
    "row",
    [[np.inf, 1, 0, -2], [-np.inf, 1, 0, np.inf], [1, np.nan, 2, -3], [np.nan, np.inf, 1, 0], [3e38, -3.4e38, 1, 0]],
)
def test_values_that_are_not_finite(row: list[float]):
    x = np.array([row] * 3, np.float32)
    for mine, theirs in [(_C.quantize_channel, quantize_rows), (_C.quantize_block, quantize_block_128x128)]:
        codes, scales = mine(x)
        want_codes, want_scales = (part.numpy() for part in theirs(torch.from_numpy(x)))
        np.testing.assert_array_equal(scales, want_scales)
        # NaN has two codes.
        nan = codes & 127 == 127
        np.testing.assert_array_equal(nan, want_codes & 127 == 127)
        np.testing.assert_array_equal(codes[~nan], want_codes[~nan])


@pytest.mark.parametrize("experts", ["channel", "block"])
def test_activation_quantisers_are_bit_exact(tmp_path: Path, experts: str):
    """The first norm's input is such that its FP32 output is the same in any order of summing."""
    config = small_config(
        hidden_size=1040, num_attention_heads=1, num_hidden_layers=1, **(SIZED_MOE | {"first_k_dense_replace": 0})
    )
    case = Case(config, lengths=[3], tuples=1)
    rng = np.random.default_rng(1)
    bos = rng.choice([-2.0, -1.0, 0.5, 1.0, 4.0], size=config.hidden_size).astype(np.float32)
    gamma = adversarial((1, config.hidden_size), 2)[0] * np.exp2(rng.integers(-8, 8, config.hidden_size))
    gammas = {}
    for norm in ("cross_attn_norm", "self_attn_norm", "mlp_norm"):
        gammas[norm] = np.roll(gamma, len(gammas)).astype(np.float32)
        case.state[f"model.layers.0.{norm}.weight"] = torch.from_numpy(gammas[norm])
    case.state["model.bos_embedding"] = torch.from_numpy(bos)
    for branch in ("cross_attn", "self_attn"):
        case.state[f"model.layers.0.{branch}.o_proj.weight"].zero_()
    with open_engine(case, tmp_path, "fp8" if experts == "block" else "fp8_channel") as engine:
        _, recorded = engine.score_tapped(case.requests, case.tuples)
    first = {}
    for name, codes, scales in recorded:
        first.setdefault(name, (codes, scales))
    eps = config.rms_norm_eps
    row = torch.from_numpy(bos)[None]
    by_row = {norm: quantize_norm_rows(row, torch.from_numpy(value), eps) for norm, value in gammas.items()}
    rstd = np.float32(1) / np.sqrt((bos * bos).mean(dtype=np.float32) + np.float32(eps))
    by_block = quantize_row_blocks(torch.from_numpy((bos * rstd) * gammas["mlp_norm"])[None])
    of_experts = by_row["mlp_norm"] if experts == "channel" else by_block
    checked = [("cross_attn.q_proj", *by_row["cross_attn_norm"])]
    checked += [("self_attn.qkv_proj", *by_row["self_attn_norm"])]
    checked += [("mlp.shared_experts.gate_up_proj", *by_row["mlp_norm"])]
    checked += [("mlp.experts.gate_up_proj", *(part.repeat_interleave(2, 0) for part in of_experts))]
    for name, codes, scales in checked:
        got_codes, got_scales = first[f"model.layers.0.{name}"]
        np.testing.assert_array_equal(got_codes, codes.numpy(), err_msg=name)
        np.testing.assert_array_equal(got_scales, scales.numpy().reshape(len(scales), -1), err_msg=name)


SIZED = {"dense": small_config(**sized_model()), "moe": small_config(**sized_model(**SIZED_MOE))}
CASES = [("dense", "fp8"), ("moe", "fp8"), ("moe", "fp8_channel"), ("dense", "bf16"), ("moe", "bf16")]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def tapped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    name, precision = request.param
    case = Case(SIZED[name], seed=3, lengths=[0, 3, 25, 11, 5] * 6, tuples=10)
    with open_engine(case, tmp_path_factory.mktemp("model"), precision) as engine:
        scores, recorded = engine.score_tapped(case.requests, case.tuples)
        np.testing.assert_array_equal(np.stack(scores), np.stack(engine.score(case.requests, case.tuples)))
    return case, precision, np.stack(scores), recorded


def run_fed(tapped: tuple, use: Callable[[str], bool]) -> tuple[np.ndarray, Fed]:
    """Differences of the scores where the reference is fed the engine's operands of the linears that `use` chooses."""
    case, precision, scores, recorded = tapped
    fed = Fed(case.model, recorded, use=use)
    fed.ops = emulated(precision, tap=fed)
    return np.abs(scores - summed(case.reference(fed.ops))), fed


def differing(fed: Fed) -> dict[str, float]:
    """The share of codes (or 16-bit values) that differ, where it is too large.

    One bit of a 16-bit key or value of BOS reaches every beam of the request: hence the larger bound there.
    """
    shares = {name: wrong / count for name, (wrong, count) in fed.differing.items()}
    return {name: share for name, share in shares.items() if share > (1e-3 if name in fed.scales else 1e-2)}


def test_reference_fed_with_the_engines_operands(tapped: tuple):
    """All of them, the 16-bit ones of routers and heads included: no rounding is left that could go either way."""
    difference, fed = run_fed(tapped, lambda _: True)
    assert difference.max() <= 2e-5
    assert differing(fed) == {}
    quantised = {spec.name for spec in expected_tensors(tapped[0].config) if spec.kind in ("linear", "expert")}
    assert bool(fed.scales) == tapped[1].startswith("fp8")
    for name, relative in fed.scales.items():
        assert any(weight.startswith(name.rpartition(".")[0]) for weight in quantised)
        # A scale follows one value, which may be rounded to either side; the others differ by the norm's last bits.
        assert np.quantile(relative, 0.95) <= 1e-6
        assert max(relative) <= 2**-7


def test_reference_fed_with_the_engines_codes_alone(tapped: tuple):
    """The residual stream is BF16: where its sum lies between two values either side may be taken, and shows."""
    if tapped[1] == "bf16":
        return
    difference, fed = run_fed(tapped, lambda name: not name.startswith(("context.", "lm_heads.", *routers(tapped[0]))))
    assert (difference <= 2e-5).mean() >= 0.75
    assert difference.max() <= 1e-2
    assert differing(fed) == {}


def routers(case: Case) -> list[str]:
    return [layer.gate.name for layer in case.model.moe_layers()]


@pytest.mark.parametrize("name", ["everything", "moe_softmax", "moe_raw_scores", "moe_many", "blocks"])
@pytest.mark.parametrize("precision", ["bf16", "fp8", "fp8_channel"])
def test_small_models_fed(tmp_path: Path, name: str, precision: str):
    case = Case(NAMED[name], seed=3, lengths=[3, 0, 12], tuples=8)
    with open_engine(case, tmp_path, precision) as engine:
        scores, recorded = engine.score_tapped(case.requests, case.tuples)
    difference, _ = run_fed((case, precision, np.stack(scores), recorded), lambda _: True)
    assert difference.max() <= 2e-5


def test_every_linear_is_tapped(tmp_path: Path):
    case = Case(NAMED["moe"], lengths=[3, 2], tuples=4)
    seen = []
    case.reference(emulated("fp8", tap=lambda name, step, operand: seen.append(name)))
    with open_engine(case, tmp_path, "fp8") as engine:
        _, recorded = engine.score_tapped(case.requests, case.tuples)
    assert [name for name, _, _ in recorded] == seen
