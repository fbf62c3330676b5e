"""Engine and reference give the same log-probabilities to forced semantic ids, in every precision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from engine_case import PRECISIONS, SIZED_MOE, SummedInPairs, SummedInTiles, emulated, open_engine, sized_model  # noqa: E402
from model_case import Case, summed  # noqa: E402
from model_grid import HISTORY, MOE, NAMED, grid, small_config  # noqa: E402

from onerec_engine.config import OneRecV2Config  # noqa: E402

GRID = grid(drawn=24)
LENGTHS = [3, 0, 12, 1, 5]


def scores(case: Case, directory: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The engine's and the reference's scores [requests, tuples]."""
    with open_engine(case, directory, name) as engine:
        assert engine.precision == name.partition("_")[0]
        got = np.stack(engine.score(case.requests, case.tuples))
    return got, summed(case.reference(emulated(name)))


@pytest.mark.parametrize("name", GRID)
def test_fp32(tmp_path: Path, name: str):
    case = Case(GRID[name], seed=1, lengths=LENGTHS, tuples=6)
    got, want = scores(case, tmp_path, "fp32")
    assert np.abs(got - want).max() <= 2e-4
    assert np.abs(got - want).mean() <= 1e-5
    assert np.abs(got - summed(case.reference())).max() <= 2e-4


@pytest.mark.parametrize("name", ["plain", "everything", "moe", "blocks", "kv_of_some_layers", "drawn_8"])
def test_fp32_of_large_scores(tmp_path: Path, name: str):
    """Logits of standard deviation 12: log-probabilities of -50 and beyond."""
    config = GRID[name]
    heads = {f"lm_heads.{t}.weight": 8.0 for t in range(config.levels)}
    case = Case(config, seed=2, lengths=LENGTHS, tuples=20, factors=heads)
    got, want = scores(case, tmp_path, "fp32")
    assert want.min() < -20
    assert np.abs(got - want).max() <= 2e-4


@pytest.mark.parametrize("name", GRID)
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_16_and_8_bits_round_at_the_same_points(tmp_path: Path, name: str, precision: str):
    """Most scores agree to FP32's last bits, which they would not if any value were rounded elsewhere.

    The others depend on a value so close to the middle between two of its format's numbers that the order of an FP32
    sum decides to which side it is rounded.
    """
    case = Case(GRID[name], seed=1, lengths=LENGTHS, tuples=6)
    got, want = scores(case, tmp_path, precision)
    assert (np.abs(got - want) <= 1e-5).mean() >= 0.6
    assert np.abs(got - want).mean() <= 1e-2


@pytest.mark.parametrize("name", [name for name, config in NAMED.items() if config.n_routed_experts])
def test_experts_per_channel(tmp_path: Path, name: str):
    case = Case(GRID[name], seed=1, lengths=LENGTHS, tuples=6)
    got, want = scores(case, tmp_path, "fp8_channel")
    assert (np.abs(got - want) <= 1e-5).mean() >= 0.6


LARGE: dict[str, dict[str, Any]] = {
    "many_codes": {"codebook_sizes": (1000, 4097, 999)},
    "long_context": {"pathways": (replace(HISTORY, max_tokens=700),), "num_context_kv_heads": 1},
    "wide_heads": {"num_attention_heads": 2, "head_dim": 272, "num_context_kv_heads": 1},
    "many_heads": {"num_attention_heads": 16, "head_dim": 48, "num_context_kv_heads": 4, "num_key_value_heads": 8},
    "many_layers": {"num_hidden_layers": 12, "num_context_kv_layers": 5, "context_kv_split": 2},
    "sharp_attention": {"attention_scale": 5.0, "qk_norm": True},
    "many_experts": SIZED_MOE | {"n_routed_experts": 64, "num_experts_per_tok": 8, "n_shared_experts": 3},
    "all_of_many_experts": MOE | {"n_routed_experts": 32, "num_experts_per_tok": 32},
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("precision", ["fp32", "fp8"])
def test_larger_shapes(tmp_path: Path, name: str, precision: str):
    case = Case(small_config(**LARGE[name]), seed=1, lengths=[3, 0, 750, 1], tuples=20)
    got, want = scores(case, tmp_path, precision)
    if precision == "fp32":
        assert np.abs(got - want).max() <= 2e-4
    else:
        assert (np.abs(got - want) <= 1e-5).mean() >= 0.6


SIZED: dict[str, OneRecV2Config] = {
    "dense": small_config(**sized_model()),
    "moe": small_config(**sized_model(**SIZED_MOE)),
    "wide_groups": small_config(
        **sized_model(num_attention_heads=8, head_dim=32, num_context_kv_heads=1, qk_norm=True)
    ),
}
REQUESTS = 160
TUPLES = 2


@pytest.fixture(scope="module", params=SIZED)
def sized(request: pytest.FixtureRequest) -> Case:
    lengths = np.random.default_rng(5).integers(0, 25, size=REQUESTS).tolist()
    return Case(SIZED[request.param], seed=4, lengths=lengths, tuples=TUPLES)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_free_running_differences(tmp_path: Path, sized: Case, precision: str):
    """Both sides round their own values; a format moves the scores far more than the two differ, and to neither side.

    Where a sum lies close to the middle between two BF16 numbers, its order decides, and the scores follow: references
    of different orders may differ by more than this allows. The engine is held against the nearest of three orders: of
    torch, of x86's matrix tiles, and of its vectors.
    """
    got, want = scores(sized, tmp_path, precision)
    difference = got - want
    if precision == "fp32":
        assert np.abs(difference).max() <= 2e-4
        return
    if precision == "bf16":
        assert np.abs(difference).mean() <= 1e-2
        others = [got - summed(sized.reference(order)) for order in (SummedInTiles(), SummedInPairs())]
        difference = min([difference, *others], key=lambda values: np.abs(values).mean())
    noise = np.abs(want - summed(sized.reference(emulated("fp32")))).mean()
    assert np.abs(difference).mean() <= 0.2 * noise
    # A request's tuples share its context, so that requests are the independent samples.
    means = difference.mean(axis=1)
    assert abs(means.mean()) <= 3 * means.std(ddof=1) / np.sqrt(REQUESTS)


def test_any_number_of_semantic_ids_per_request(tmp_path: Path):
    case = Case(NAMED["everything"], lengths=[4, 0, 9, 2], tuples=5)
    want = summed(case.reference())
    counts = [5, 0, 1, 3]
    with open_engine(case, tmp_path, max_batch=2, max_beam_width=2, max_rows=2) as engine:
        got = engine.score(case.requests, [of[:n] for of, n in zip(case.tuples, counts, strict=True)])
    assert [part.shape for part in got] == [(n,) for n in counts]
    for part, row, n in zip(got, want, counts, strict=True):
        np.testing.assert_allclose(part, row[:n], atol=2e-4, rtol=0)


def test_longer_contexts_than_the_engine_has_room_for(tmp_path: Path):
    """`max_context` keeps each pathway's newest tokens: as a model with shorter pathways does."""
    config = NAMED["kv_per_layer"]
    case = Case(config, lengths=[6, 3, 12], tuples=4)
    kept = [[tokens[-4:] for tokens in request] for request in case.tokens]
    with open_engine(case, tmp_path, max_context=4) as engine:
        got = np.stack(engine.score(case.requests, case.tuples))
    case.tokens = kept
    np.testing.assert_allclose(got, summed(case.reference()), atol=2e-4, rtol=0)


def test_a_dict_of_arrays_is_read_like_requests(tmp_path: Path):
    case = Case(NAMED["everything"], lengths=[4, 0, 9], tuples=3)
    requests = case.requests
    columns: dict[str, np.ndarray] = {
        "item_ids": np.concatenate([r.history for r in requests]),
        "offsets": np.cumsum([0, *(len(r.history) for r in requests)]),
        "clicked": np.concatenate([r.features["clicked"] for r in requests]),
        "clicked.offsets": np.cumsum([0, *(len(r.features["clicked"]) for r in requests)]),
    }
    for key in requests[0].features:
        if key != "clicked":
            columns[key] = np.concatenate([r.features[key] for r in requests])
    with open_engine(case, tmp_path) as engine:
        got, want = engine.score(columns, case.tuples), engine.score(requests, case.tuples)
    np.testing.assert_array_equal(np.stack(got), np.stack(want))
