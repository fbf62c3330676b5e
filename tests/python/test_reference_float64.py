"""The PyTorch reference against a float64 NumPy model written from docs/, over a grid of configurations."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from model_case import Case  # noqa: E402
from model_grid import BIASES, MOE, NAMED, TAGGED, USER, grid, small_config  # noqa: E402
from plain_numbers import BF16_POINTS, EXTRA_POINTS, ROUNDED_POINTS, Numbers  # noqa: E402

from onerec_engine.config import OneRecV2Config  # noqa: E402
from onerec_engine.reference import Emulated  # noqa: E402

GRID = grid(drawn=24)


@pytest.mark.parametrize("name", GRID)
def test_fp32_equals_float64(name: str):
    case = Case(GRID[name])
    want = case.plain()
    np.testing.assert_allclose(case.reference(), want, atol=1e-5, rtol=0)
    np.testing.assert_allclose(case.reference(Emulated("fp32")), want, atol=1e-5, rtol=0)


# A value may lie so close to the middle between two BF16 or E4M3 values that FP32 and float64 sums round it to either
# side; the scores that depend on it then differ by as much as the format's noise. All others agree to FP32's last bits.
EQUAL = 2e-6


def equal_share(difference: np.ndarray) -> float:
    return float((np.abs(difference) <= EQUAL).mean())


def rounding_cases() -> Iterator[tuple[str, str, str]]:
    for name in [*NAMED, "drawn_1", "drawn_9", "drawn_16", "drawn_17"]:
        yield name, "bf16", "block"
        yield name, "fp8", "block"
        if GRID[name].n_routed_experts:
            yield name, "fp8", "channel"


@pytest.mark.parametrize(("name", "precision", "experts"), list(rounding_cases()))
def test_emulation_rounds_where_the_documentation_says(name: str, precision: str, experts: str):
    case = Case(GRID[name], lengths=[3, 0, 12], tuples=2)
    difference = case.reference(Emulated(precision, experts=experts)) - case.plain(Numbers(precision, experts=experts))
    assert equal_share(difference) >= 0.6


def full_config() -> OneRecV2Config:
    """Every optional part at once, so that every rounding point is there."""
    return small_config(
        num_context_kv_layers=2,
        context_kv_split=2,
        num_context_kv_heads=2,
        num_key_value_heads=2,
        qk_norm=True,
        decoder_position_embedding="learned",
        pathways=(TAGGED, USER),
        **BIASES,
        **MOE,
    )


@pytest.fixture(scope="module", params=["bf16", "fp8"])
def emulated(request: pytest.FixtureRequest):
    case = Case(full_config(), lengths=[4, 7], tuples=4)
    scores = case.reference(Emulated(request.param))
    assert equal_share(scores - case.plain(Numbers(request.param))) >= 0.7
    return request.param, case, scores


@pytest.mark.parametrize("point", [*ROUNDED_POINTS, *BF16_POINTS, *EXTRA_POINTS])
def test_each_rounding_point_shows(emulated, point: str):
    """With one point more or less the agreement is gone: the test above would see it."""
    precision, case, scores = emulated
    assert equal_share(scores - case.plain(Numbers(precision, flipped=[point]))) <= 0.5
