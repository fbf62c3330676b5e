"""The PyTorch reference against a float64 NumPy model written from docs/, over a grid of configurations."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from model_grid import BIASES, MOE, NAMED, TAGGED, USER, grid, random_items, random_requests, small_config  # noqa: E402
from oracle import Oracle  # noqa: E402
from plain_context import context_input, tokens_of  # noqa: E402
from plain_numbers import BF16_POINTS, EXTRA_POINTS, ROUNDED_POINTS, Numbers  # noqa: E402

from onerec_engine.config import OneRecV2Config  # noqa: E402
from onerec_engine.reference import Emulated, OneRecV2, random_state_dict, score_tuples  # noqa: E402

GRID = grid(drawn=24)
LENGTHS = [3, 0, 12, 1]
TUPLES = 3


class Case:
    """A random model, some requests, and a few tuples of each."""

    def __init__(self, config: OneRecV2Config, seed: int = 0, lengths: list[int] = LENGTHS, tuples: int = TUPLES) -> None:
        torch.set_num_threads(1)
        self.config = config
        state = random_state_dict(config, seed=seed)
        self.model = OneRecV2.from_state_dict(config, state)
        self.weights = {name: value.numpy() for name, value in state.items()}
        items = random_items(config.codebook_sizes, seed=seed)
        requests = random_requests(config, items, lengths, seed=seed)
        self.tokens = [tokens_of(request, config, items) for request in requests]
        rng = np.random.default_rng(seed)
        shape = (len(lengths), tuples)
        self.tuples = np.stack([rng.integers(size, size=shape) for size in config.codebook_sizes], -1)

    def reference(self, ops: Emulated | None = None) -> np.ndarray:
        context = context_input(self.tokens, self.config)
        return score_tuples(self.model, context, torch.from_numpy(self.tuples), ops).numpy()

    def plain(self, numbers: Numbers | None = None) -> np.ndarray:
        oracle = Oracle(self.config, self.weights, numbers)
        return np.array(
            [[oracle.score(t, ids) for ids in of] for t, of in zip(self.tokens, self.tuples.tolist(), strict=True)]
        )


@pytest.mark.parametrize("name", GRID)
def test_fp32_equals_float64(name: str):
    case = Case(GRID[name])
    want = case.plain()
    np.testing.assert_allclose(case.reference(), want, atol=1e-5, rtol=0)
    np.testing.assert_allclose(case.reference(Emulated("fp32")), want, atol=1e-5, rtol=0)


# Values of a few rows may lie so close to the middle between two BF16 or E4M3 values that FP32 and float64 sums round
# to either side; then the row's scores differ by as much as the format's noise. All other rows agree to FP32's last bits.
EQUAL = 2e-6


def equal_share(difference: np.ndarray) -> float:
    return float((np.abs(difference) <= EQUAL).mean())


@pytest.mark.parametrize("name", [*NAMED, "drawn_1", "drawn_9", "drawn_16", "drawn_17"])
@pytest.mark.parametrize(("precision", "experts"), [("bf16", "block"), ("fp8", "block"), ("fp8", "channel")])
def test_emulation_rounds_where_the_documentation_says(name: str, precision: str, experts: str):
    config = GRID[name]
    if experts == "channel" and not config.n_routed_experts:
        pytest.skip("no experts")
    case = Case(config)
    difference = case.reference(Emulated(precision, experts=experts)) - case.plain(Numbers(precision, experts=experts))
    assert equal_share(difference) >= 0.7


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
    case = Case(full_config(), lengths=[4, 7], tuples=2)
    scores = case.reference(Emulated(request.param))
    assert equal_share(scores - case.plain(Numbers(request.param))) >= 0.7
    return request.param, case, scores


@pytest.mark.parametrize("point", [*ROUNDED_POINTS, *BF16_POINTS, *EXTRA_POINTS])
def test_each_rounding_point_shows(emulated, point: str):
    """With one point more or less the agreement is gone: the test above would see it."""
    precision, case, scores = emulated
    assert equal_share(scores - case.plain(Numbers(precision, flipped=[point]))) <= 0.5
