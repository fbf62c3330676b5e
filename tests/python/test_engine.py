"""The engine from outside: search against scoring, every kind of batch, limits, threads, and its end."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import EVERYTHING, MOE, pathway, random_weights, tiny_config, write_checkpoint

from onerec_engine import (
    BatchResult,
    Engine,
    EngineClosedError,
    EngineError,
    OutOfMemoryPlanError,
    Recommendation,
    Request,
    Result,
    build_info,
)

LEVELS = 3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("engine") / "plain", items=60)


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Iterator[Engine]:
    with Engine.from_checkpoint(checkpoint, threads=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path = write_checkpoint(tmp_path_factory.mktemp("engine") / "rich", tiny_config(**EVERYTHING), items=60)
    with Engine.from_checkpoint(path, threads=1) as engine:
        yield engine


def items_of(engine: Engine, *places: int) -> list[int]:
    return [int(engine.catalogue.item_ids[place]) for place in places]


def requests(engine: Engine, count: int, seed: int = 0) -> list[Request]:
    rng = np.random.default_rng(seed)
    return [Request(history=rng.choice(engine.catalogue.item_ids, rng.integers(0, 12))) for _ in range(count)]


def ranking(engine: Engine, request: Request, gone: set[int] | frozenset[int] = frozenset()) -> tuple[Any, Any]:
    """All items in the order of their scores, by `score`; those of one semantic id by ascending id."""
    catalogue = engine.catalogue
    scores = engine.score([request], [catalogue.semantic_ids])[0]
    # Equal scores: smaller codes first, as smaller parents and smaller codes win.
    keys = [
        (-float(s), tuple(c), int(i))
        for s, c, i in zip(scores, catalogue.semantic_ids, catalogue.item_ids, strict=True)
    ]
    best = [(item, -score) for score, _, item in sorted(keys) if item not in gone]
    return [item for item, _ in best], [score for _, score in best]


def agree(result: Result, want: tuple[Any, Any]) -> None:
    items, scores = want
    count = len(result)
    np.testing.assert_allclose(result.logprobs, scores[:count], atol=2e-5)
    assert sorted(result.items) == sorted(items[:count])
    assert result.items.tolist() == items[:count]


def equal(a: BatchResult, b: BatchResult) -> None:
    for name in ("items", "semantic_ids", "logprobs", "legal", "counts", "requested", "unknown_history", "truncated"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


# --- search ---


def test_wide_beams_find_everything_in_order(engine: Engine) -> None:
    for request in requests(engine, 6):
        result = engine.generate([request], beam_width=400, num_results=60)[0]
        agree(result, ranking(engine, request))
        assert result.complete
        assert result.legal.all()


def test_search_of_every_kind_of_input(rich: Engine) -> None:
    ids = rich.catalogue.item_ids
    batch = [
        Request(
            history=ids[3:6],
            features={
                "user.age": 4,
                "user.stats": [0.5, -1.0, 2.0],
                "recent.action": [0, 1, 4],
                "recent.seconds": [0.0, 1.0, -1.0],
                "long_term": ids[10:30],
            },
        ),
        Request(features={"user.age": 0, "user.stats": [0, 0, 0], "long_term": []}),
    ]
    results = rich.generate(batch, beam_width=400, num_results=30)
    for request, result in zip(batch, results, strict=True):
        agree(result, ranking(rich, request))
    changed = Request(history=ids[3:6], features=dict(batch[0].features) | {"user.age": 5})
    assert (rich.score([changed], [results[0].semantic_ids])[0] != results[0].logprobs).any()


def test_scores_of_the_search_are_those_of_score(engine: Engine) -> None:
    batch = requests(engine, 7)
    results = engine.generate(batch, beam_width=[8, 20, 30], num_results=12)
    scores = engine.score(batch, [result.semantic_ids for result in results])
    for result, score in zip(results, scores, strict=True):
        np.testing.assert_allclose(result.logprobs, score, atol=2e-5)
        assert score.dtype == np.float32


def test_probabilities_of_all_tuples_add_up(tmp_path: Path) -> None:
    config = tiny_config(codebook_sizes=[3, 4, 2])
    path = write_checkpoint(tmp_path, config)
    everything = np.stack(np.unravel_index(np.arange(24), (3, 4, 2)), axis=1)
    with Engine.from_checkpoint(path, threads=1) as engine:
        scores = engine.score([Request(history=engine.catalogue.item_ids[:4])], [everything])[0]
    assert np.exp(scores.astype(np.float64)).sum() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("levels", [1, 2, 8])
def test_other_numbers_of_levels(levels: int, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, tiny_config(codebook_sizes=[5] * levels), items=20)
    with Engine.from_checkpoint(path, threads=1) as engine:
        request = Request(history=engine.catalogue.item_ids[:3])
        agree(engine.generate([request], beam_width=50, num_results=20)[0], ranking(engine, request))


@pytest.mark.parametrize(("quantization", "precision"), [(None, "bf16"), ("fp8", None), ("fp8_channel", None)])
def test_other_precisions(quantization: str | None, precision: str | None, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, tiny_config(**MOE), items=60)
    with (
        Engine.from_checkpoint(path, threads=1) as plain,
        Engine.from_checkpoint(path, threads=1, quantization=quantization, precision=precision) as engine,
    ):
        assert plain.precision == "fp32"
        assert (engine.precision, engine.quantization) == (precision or "fp8", quantization)
        batch = requests(plain, 3)
        semantic_ids = [plain.catalogue.semantic_ids] * 3
        ours, exact = engine.score(batch, semantic_ids), plain.score(batch, semantic_ids)
        difference = np.abs(np.concatenate(ours) - np.concatenate(exact))
        assert 0 < difference.mean() < 0.3
        assert difference.max() < 2


# --- what a batch may be ---


def test_empty_batch(engine: Engine) -> None:
    for batch in ([], {"item_ids": [], "offsets": [0]}, iter(())):
        result = engine.generate(batch)
        assert len(result) == 0
        assert result.items.shape == (0, 0)
        assert result.semantic_ids.shape == (0, 0, LEVELS)
        assert list(result) == []
    assert engine.score([], []) == []


def test_empty_history(engine: Engine) -> None:
    alone = engine.generate([Request()], num_results=20)[0]
    agree(alone, ranking(engine, Request()))
    beside = engine.generate([*requests(engine, 3), Request(), *requests(engine, 2, seed=1)], num_results=20)[3]
    np.testing.assert_array_equal(alone.items, beside.items)
    np.testing.assert_allclose(alone.logprobs, beside.logprobs, atol=1e-5)


def test_history_longer_than_the_context(engine: Engine) -> None:
    ids = items_of(engine, *range(20))
    whole, newest = engine.generate([Request(history=ids), Request(history=ids[-6:])])
    np.testing.assert_array_equal(whole.items, newest.items)
    np.testing.assert_array_equal(whole.logprobs, newest.logprobs)
    assert (whole.truncated, newest.truncated) == (14, 0)


def test_unknown_items_are_dropped_and_counted(engine: Engine) -> None:
    ids = items_of(engine, 4, 9, 2)
    mixed, plain = engine.generate([Request(history=[10**9, ids[0], -7, *ids[1:], 10**12]), Request(history=ids)])
    np.testing.assert_array_equal(mixed.items, plain.items)
    np.testing.assert_array_equal(mixed.logprobs, plain.logprobs)
    assert (mixed.unknown_history, plain.unknown_history) == (3, 0)


def test_order_and_length_of_the_history_matter(engine: Engine) -> None:
    ids = items_of(engine, 4, 9, 2)
    score = engine.score([Request(history=h) for h in (ids, ids[::-1], ids[1:])], [engine.catalogue.semantic_ids] * 3)
    assert not np.allclose(score[0], score[1])
    assert not np.allclose(score[0], score[2])


def test_dicts_and_tensors_are_requests_too(engine: Engine) -> None:
    batch = requests(engine, 9)
    want = engine.generate(batch, exclude_history=True)
    values = np.concatenate([r.history for r in batch])
    offsets = np.cumsum([0, *(len(r.history) for r in batch)])
    equal(engine.generate({"item_ids": values, "offsets": offsets}, exclude_history=True), want)
    tensors = {"item_ids": torch.from_numpy(values), "offsets": torch.from_numpy(offsets).int()}
    equal(engine.generate(tensors, exclude_history=True), want)
    as_tensors = [Request(history=torch.from_numpy(r.history)) for r in batch]
    equal(engine.generate(as_tensors, exclude_history=True), want)
    as_lists = (Request(history=r.history.tolist()) for r in batch)
    equal(engine.generate(as_lists, exclude_history=True), want)


def test_mixed_settings(engine: Engine) -> None:
    ids = engine.catalogue.item_ids
    batch = [
        Request(history=ids[:3], beam_width=5, num_results=3),
        Request(history=ids[:3], beam_width=[8, 30, 40], num_results=40, request_id="b"),
        Request(history=ids[:3], constrained=False, num_results=8),
        Request(history=ids[:3], exclude_history=True),
        Request(history=ids[:3]),
    ]
    together = engine.generate(batch, beam_width=20, num_results=10)
    assert together.requested.tolist() == [3, 40, 8, 10, 10]
    assert together.items.shape == (5, 40)
    assert [r.request_id for r in together] == [None, "b", None, None, None]
    for request, result in zip(batch, together, strict=True):
        alone = engine.generate([request], beam_width=20, num_results=10)[0]
        np.testing.assert_array_equal(result.items, alone.items)
        np.testing.assert_allclose(result.logprobs, alone.logprobs, atol=1e-5)


def test_narrow_beams_are_prefixes_of_nothing_wider_than_asked(engine: Engine) -> None:
    """Width 1 is greedy: each level's best legal code."""
    request = requests(engine, 1)[0]
    found = engine.generate([request], beam_width=1, num_results=1)[0]
    codes, prefix = engine.catalogue.semantic_ids, np.ones(len(engine.catalogue), bool)
    everything = np.stack(np.unravel_index(np.arange(8 * 6 * 7), (8, 6, 7)), axis=1)
    probability = np.exp(engine.score([request], [everything])[0].astype(np.float64)).reshape(8, 6, 7)
    for level, code in enumerate(found.semantic_ids[0]):
        marginal = probability.sum(axis=tuple(range(1, LEVELS - level)))
        legal = np.unique(codes[prefix, level])
        assert code == legal[np.argmax(marginal[legal])]
        prefix &= codes[:, level] == code
        probability = probability[code]


# --- fewer results than asked ---


def test_fewer_legal_items_than_asked(engine: Engine) -> None:
    gone = items_of(engine, *range(3, 60))
    result = engine.generate([Request(exclude=gone)], num_results=10)[0]
    assert sorted(result.items) == items_of(engine, 0, 1, 2)
    assert (result.num_results, result.requested, result.complete) == (3, 10, False)
    nothing = engine.generate([Request(exclude=engine.catalogue.item_ids)])[0]
    assert len(nothing) == 0
    assert not nothing.complete


def test_padding(engine: Engine) -> None:
    batch = [Request(exclude=items_of(engine, *range(3, 60))), Request(num_results=5)]
    results = engine.generate(batch, num_results=4)
    assert results.counts.tolist() == [3, 5]
    assert results.complete.tolist() == [False, True]
    assert results.items.shape == results.logprobs.shape == results.legal.shape == (2, 5)
    assert results.semantic_ids.shape == (2, 5, LEVELS)
    assert results.items[0, 3:].tolist() == [-1, -1]
    assert results.logprobs[0, 3:].tolist() == [-np.inf, -np.inf]
    assert results.semantic_ids[0, 3:].tolist() == [[-1] * LEVELS] * 2
    assert not results.legal[0, 3:].any()
    np.testing.assert_array_equal(results.items[1], results[1].items)
    assert results.items.dtype == np.int64
    assert results.semantic_ids.dtype == np.int32
    assert results.logprobs.dtype == np.float32


def test_beams_wider_than_codebooks_and_items(engine: Engine) -> None:
    batch = requests(engine, 2)
    wide = engine.generate(batch, beam_width=1024, num_results=100)
    exact = engine.generate(batch, beam_width=[8, 48, 60], num_results=60)
    assert wide.counts.tolist() == [60, 60]
    assert not wide.complete.any()
    np.testing.assert_array_equal(wide.items[:, :60], exact.items)


def test_a_beam_that_runs_into_a_dead_end(tmp_path: Path) -> None:
    """The best first code leads to excluded items alone: it may not take the beam's place."""
    catalogue = (np.arange(4), np.array([[0, 0, 0], [0, 0, 1], [1, 0, 0], [2, 0, 0]]))
    path = write_checkpoint(tmp_path, catalogue=catalogue)
    with Engine.from_checkpoint(path, threads=1) as engine:
        order = engine.generate([Request()], beam_width=3, num_results=3)[0]
        first = int(order.items[0])
        twins = [0, 1] if first in (0, 1) else [first]
        result = engine.generate([Request(exclude=twins)], beam_width=1, num_results=1)[0]
        assert len(result) == 1
        assert result.items[0] not in twins


# --- exclusion ---


def test_excluded_items_are_as_if_absent(engine: Engine, tmp_path: Path) -> None:
    gone = items_of(engine, *range(0, 60, 3))
    kept = np.isin(engine.catalogue.item_ids, gone, invert=True)
    catalogue = (engine.catalogue.item_ids[kept], engine.catalogue.semantic_ids[kept])
    path = write_checkpoint(tmp_path, catalogue=catalogue)
    batch = [
        Request(history=items_of(engine, 1, 2, 4, 5), exclude=gone, beam_width=w, num_results=w) for w in (1, 4, 9)
    ]
    with Engine.from_checkpoint(path, threads=1) as smaller:
        other = smaller.generate(
            [Request(history=r.history, beam_width=r.beam_width, num_results=r.num_results) for r in batch]
        )
    equal(engine.generate(batch), other)


def test_exclude_history_means_all_of_it(engine: Engine) -> None:
    ids = items_of(engine, *range(20))
    results = engine.generate([Request(history=ids)], beam_width=400, num_results=60, exclude_history=True)[0]
    assert sorted(results.items) == items_of(engine, *range(20, 60))
    agree(results, ranking(engine, Request(history=ids), set(ids)))


def test_excluding_what_is_unknown_or_twice(engine: Engine) -> None:
    ids = items_of(engine, 5, 6)
    request = Request(history=ids, exclude=[*ids, 10**9, ids[0], -1000], exclude_history=True)
    result = engine.generate([request], beam_width=400, num_results=60)[0]
    agree(result, ranking(engine, request, set(ids)))


# --- several items per semantic id ---


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    rng = np.random.default_rng(5)
    codes = np.column_stack([rng.integers(0, 3, 40) for _ in range(LEVELS)])
    path = tmp_path_factory.mktemp("engine") / "twins"
    write_checkpoint(path, catalogue=(rng.permutation(1000)[:40] - 500, codes))
    with Engine.from_checkpoint(path, threads=1) as engine:
        yield engine


def test_items_of_one_semantic_id_by_ascending_id(twins: Engine) -> None:
    assert len(np.unique(twins.catalogue.semantic_ids, axis=0)) < 30
    for count in (1, 2, 3, 7, 40):
        request = Request(history=twins.catalogue.item_ids[:4])
        agree(twins.generate([request], beam_width=60, num_results=count)[0], ranking(twins, request))


def test_excluded_twins(twins: Engine) -> None:
    _, inverse, counts = np.unique(twins.catalogue.semantic_ids, axis=0, return_inverse=True, return_counts=True)
    ids = twins.catalogue.item_ids
    crowd = ids[inverse.reshape(-1) == counts.argmax()].tolist()
    for gone in (crowd[:1], crowd[-1:], crowd[1:], crowd):
        request = Request(exclude=gone)
        result = twins.generate([request], beam_width=60, num_results=40)[0]
        agree(result, ranking(twins, request, set(gone)))


# --- unconstrained ---


def test_unconstrained_finds_all_tuples(engine: Engine) -> None:
    request = requests(engine, 1)[0]
    everything = np.stack(np.unravel_index(np.arange(8 * 6 * 7), (8, 6, 7)), axis=1)
    scores = engine.score([request], [everything])[0]
    result = engine.generate([request], beam_width=8 * 6 * 7, num_results=50, constrained=False)[0]
    np.testing.assert_allclose(result.logprobs, -np.sort(-scores)[:50], atol=2e-5)
    known = {tuple(codes): [] for codes in engine.catalogue.semantic_ids.tolist()}
    for item, codes in zip(engine.catalogue.item_ids.tolist(), engine.catalogue.semantic_ids.tolist(), strict=True):
        known[tuple(codes)].append(item)
    assert 0 < result.legal.sum() < 50
    for item, codes, legal in zip(result.items.tolist(), result.semantic_ids.tolist(), result.legal, strict=True):
        assert legal == (tuple(codes) in known)
        assert item in known[tuple(codes)] if legal else item == -1


def test_unconstrained_leaves_excluded_items_out(twins: Engine) -> None:
    width = 8 * 6 * 7
    every = twins.generate([Request()], beam_width=width, num_results=width, constrained=False)[0]
    gone = every.items[every.legal][::2]
    rest = twins.generate([Request(exclude=gone)], beam_width=width, num_results=width, constrained=False)[0]
    keep = ~(every.legal & np.isin(every.items, gone))
    # The first `width` results were asked for, so less of what was excluded lets further ones in.
    np.testing.assert_array_equal(rest.items[: keep.sum()], every.items[keep])
    np.testing.assert_array_equal(rest.logprobs[: keep.sum()], every.logprobs[keep])


# --- score ---


def test_score_shapes(engine: Engine) -> None:
    batch = requests(engine, 3)
    rng = np.random.default_rng(0)
    array = np.stack([rng.integers(0, size, (3, 4)) for size in (8, 6, 7)], axis=-1)
    scores = engine.score(batch, array)
    assert [s.shape for s in scores] == [(4,)] * 3
    ragged = engine.score(batch, [array[0], [], torch.from_numpy(array[2, :2])])
    assert [s.shape for s in ragged] == [(4,), (0,), (2,)]
    np.testing.assert_allclose(ragged[0], scores[0], atol=1e-5)
    np.testing.assert_allclose(ragged[2], scores[2][:2], atol=1e-5)
    assert engine.score(batch, [[], [], []])[1].shape == (0,)


@pytest.mark.parametrize(
    ("semantic_ids", "message"),
    [
        ([[[0, 0, 0]]], "for 1 requests, want 2"),
        (3, "got int"),
        ([[[0, 0, 0]], [[0, 0]]], r"request 1: got semantic_ids of shape \[1, 2\]"),
        ([[[0, 0, 0]], [0, 0, 0]], "request 1: got semantic_ids of shape"),
        ([[[0, 0, 0]], [[0, 6, 0]]], r"request 1: got semantic id \[0, 6, 0\], want codes below \[8, 6, 7\]"),
        ([[[0, 0, -1]], [[0, 0, 0]]], "request 0: got semantic id"),
        ([[[0, 0, 0]], [[0.5, 0, 0]]], "request 1: semantic_ids: got float64"),
    ],
)
def test_score_errors(engine: Engine, semantic_ids: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"\[score\] .*{message}"):
        engine.score([Request(), Request()], semantic_ids)


def test_tapped_scores_are_the_scores(engine: Engine) -> None:
    batch, semantic_ids = requests(engine, 2), [engine.catalogue.semantic_ids[:5]] * 2
    scores, operands = engine.score_tapped(batch, semantic_ids)
    np.testing.assert_array_equal(scores, engine.score(batch, semantic_ids))
    names = {name for name, _, _ in operands}
    assert any("self_attn" in name for name in names)
    assert all(values.ndim == 2 for _, values, _ in operands)


# --- limits ---


def test_long_calls_are_cut_into_runs(engine: Engine, checkpoint: Path) -> None:
    rng = np.random.default_rng(0)
    batch = [
        Request(
            history=rng.choice(engine.catalogue.item_ids, rng.integers(0, 12)),
            beam_width=int(rng.integers(1, 40)),
            num_results=1,
            exclude_history=bool(rng.integers(2)),
            request_id=i,
        )
        for i in range(150)
    ]
    whole = engine.generate(batch)
    assert [r.request_id for r in whole] == list(range(150))
    with Engine.from_checkpoint(checkpoint, threads=1, max_batch=3, max_beam_width=40, max_rows=50) as small:
        parts = small.generate(batch)
        np.testing.assert_array_equal(parts.items, whole.items)
        np.testing.assert_allclose(parts.logprobs, whole.logprobs, atol=1e-5)
        many = np.repeat(engine.catalogue.semantic_ids, 3, axis=0)
        np.testing.assert_allclose(
            small.score(batch[:2], [many, many[:7]])[0], engine.score(batch[:1], [many])[0], atol=1e-5
        )


def test_max_context(engine: Engine, checkpoint: Path) -> None:
    ids = items_of(engine, *range(6))
    with Engine.from_checkpoint(checkpoint, threads=1, max_context=2) as short:
        result = short.generate([Request(history=ids)])[0]
        assert result.truncated == 4
        want = engine.generate([Request(history=ids[-2:])])[0]
        np.testing.assert_array_equal(result.items, want.items)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_batch": 0}, "max_batch 0, want a positive integer"),
        ({"max_beam_width": 2.5}, "max_beam_width 2.5"),
        ({"threads": True}, "threads True"),
        ({"threads": -1}, "threads -1"),
        ({"max_context": 0}, "max_context 0"),
        ({"max_rows": 10}, "max_rows 10, want at least"),
        ({"memory_limit": 0}, "memory_limit 0"),
        ({"device": "tpu"}, "device 'tpu'"),
    ],
)
def test_argument_errors(checkpoint: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Engine.from_checkpoint(checkpoint, **arguments)


@pytest.mark.skipif(not build_info()["cuda"].startswith("off"), reason="this build has CUDA")
def test_cuda_is_refused_with_the_reason(checkpoint: Path) -> None:
    with pytest.raises(EngineError, match="off: "):
        Engine.from_checkpoint(checkpoint, device="cuda")


def test_defaults_of_the_checkpoint(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, items=60, generation={"beam_width": [4, 8, 16], "num_results": 7})
    with Engine.from_checkpoint(path, threads=1) as engine:
        default = engine.generate([Request()])
        assert default.requested.tolist() == [7]
        equal(default, engine.generate([Request()], beam_width=[4, 8, 16], num_results=7))
        assert engine.generate([Request()], beam_width=3).requested.tolist() == [3]
    with Engine.from_checkpoint(path, threads=1, max_beam_width=5) as engine:
        assert engine.generate([Request()]).requested.tolist() == [5]


# --- memory ---


def test_memory_plan_adds_up(checkpoint: Path) -> None:
    plans = []
    for width in (8, 256):
        with Engine.from_checkpoint(checkpoint, threads=1, max_batch=4, max_beam_width=width) as engine:
            plans.append(engine.memory_plan())
    for plan in plans:
        assert {"weights", "catalogue", "context_kv", "beam_state", "workspace"} <= plan.keys()
        assert all(size >= 0 for size in plan.values())
    assert plans[0]["weights"] == plans[1]["weights"]
    assert sum(plans[0].values()) < sum(plans[1].values())


def test_memory_plan_of_static_pathways_and_small_limits(rich: Engine, tmp_path: Path) -> None:
    assert rich.memory_plan()["weights"] > 0
    path = write_checkpoint(tmp_path, tiny_config(pathways=[pathway(max_tokens=3), pathway("b", max_tokens=5)]))
    with Engine.from_checkpoint(path, threads=1, max_batch=7, max_beam_width=3, max_rows=8, max_context=4) as engine:
        assert sum(engine.memory_plan().values()) > 0


def test_a_plan_that_does_not_fit(checkpoint: Path) -> None:
    with pytest.raises(OutOfMemoryPlanError, match=r"weights need at least .* MiB"):
        Engine.from_checkpoint(checkpoint, threads=1, memory_limit=1000)
    with Engine.from_checkpoint(checkpoint, threads=1, memory_limit=500_000) as engine:
        wide = [Request(beam_width=1000, num_results=1, constrained=False)] * 4
        with pytest.raises(OutOfMemoryPlanError, match=r"this batch needs .* MiB"):
            engine.generate(wide)
        assert len(engine.generate([Request()], beam_width=4, num_results=4)[0]) == 4


def test_scores_that_are_not_finite_name_the_request(tmp_path: Path) -> None:
    config = tiny_config()
    weights = random_weights(config)
    weights["context.semantic_id_embeddings.0.weight"][5] = np.nan
    codes = np.array([[0, 0, 0], [5, 1, 1], [2, 2, 2]])
    path = write_checkpoint(tmp_path, config, weights=weights, catalogue=(np.arange(3), codes))
    with Engine.from_checkpoint(path, threads=1) as engine:
        batch = [Request(history=[0]), Request(history=[2]), Request(history=[1])]
        with pytest.raises(EngineError, match="request 2: got log-probabilities that are not finite"):
            engine.generate(batch)
        with pytest.raises(EngineError, match="request 2: "):
            engine.score(batch, [codes] * 3)
        assert engine.generate(batch[:2])[1].logprobs.size == 3


# --- determinism, threads, the end ---


def test_same_call_same_bits(engine: Engine) -> None:
    batch = requests(engine, 20)
    equal(engine.generate(batch), engine.generate(batch))


def test_a_request_does_not_depend_on_its_batch(engine: Engine) -> None:
    batch = requests(engine, 20)
    together = engine.generate(batch)
    for i in (0, 7, 19):
        alone = engine.generate([batch[i]])[0]
        np.testing.assert_array_equal(alone.items, together[i].items)
        np.testing.assert_array_equal(alone.logprobs, together[i].logprobs)


def test_threads_get_serial_answers(engine: Engine) -> None:
    batches = [requests(engine, 1 + i % 7, seed=i) for i in range(24)]
    serial = [engine.generate(batch, exclude_history=True) for batch in batches]
    with ThreadPoolExecutor(6) as pool:
        parallel = list(pool.map(lambda batch: engine.generate(batch, exclude_history=True), batches))
    for a, b in zip(serial, parallel, strict=True):
        equal(a, b)


def test_compute_threads_change_little(engine: Engine, checkpoint: Path) -> None:
    batch = requests(engine, 8)
    semantic_ids = [engine.catalogue.semantic_ids] * 8
    with Engine.from_checkpoint(checkpoint, threads=2) as other:
        assert other.threads == 2
        for a, b in zip(engine.score(batch, semantic_ids), other.score(batch, semantic_ids), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_interpreter_runs_on_while_an_engine_computes(engine: Engine) -> None:
    ticks, stop = 0, threading.Event()

    def count() -> None:
        nonlocal ticks
        while not stop.is_set():
            ticks += 1
            time.sleep(0.0005)

    counter = threading.Thread(target=count)
    counter.start()
    started = time.perf_counter()
    while time.perf_counter() - started < 0.5:
        engine.generate([Request(history=engine.catalogue.item_ids[:6], constrained=False)] * 16, beam_width=200)
    stop.set()
    counter.join()
    assert ticks > 50


def test_close(checkpoint: Path) -> None:
    engine = Engine.from_checkpoint(checkpoint, threads=1)
    assert "fp32" in repr(engine)
    engine.close()
    engine.close()
    for call in (
        lambda: engine.generate([Request()]),
        lambda: engine.score([Request()], [[[0, 0, 0]]]),
        engine.memory_plan,
    ):
        with pytest.raises(EngineClosedError, match="it is closed"):
            call()
    with Engine.from_checkpoint(checkpoint, threads=1) as other:
        pass
    with pytest.raises(EngineClosedError):
        other.generate([])


def test_close_waits_for_calls(checkpoint: Path) -> None:
    engine = Engine.from_checkpoint(checkpoint, threads=1)
    batch = requests(engine, 16)
    outcomes: list[str] = []

    def work() -> None:
        try:
            while True:
                outcomes.append("ok" if len(engine.generate(batch, beam_width=100)) == 16 else "wrong")
        except EngineClosedError:
            outcomes.append("closed")

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    while outcomes.count("ok") < 8:
        time.sleep(0.01)
    engine.close()
    for worker in workers:
        worker.join(20)
    assert outcomes.count("closed") == 4
    assert set(outcomes) == {"ok", "closed"}


# --- results, import ---


def test_results_are_sequences(engine: Engine) -> None:
    results = engine.generate(requests(engine, 3), num_results=4)
    assert isinstance(results[0], Result)
    assert isinstance(results[0][0], Recommendation)
    assert len(results[:2]) == 2
    assert results[-1].items.tolist() == results[2].items.tolist()
    assert [len(r) for r in results] == [4, 4, 4]
    item, semantic_id, logprob = results[0][1]
    assert (item, logprob) == (results[0].items[1], pytest.approx(float(results[0].logprobs[1])))
    assert semantic_id == tuple(results[0].semantic_ids[1])
    assert [r.item for r in results[0][:2]] == results[0].items[:2].tolist()
    for wrong in (lambda: results[3], lambda: results[0][4]):
        with pytest.raises(IndexError):
            wrong()
    assert "4 of 4" in repr(results[0])
    assert "3 requests" in repr(results)


def test_import_is_light() -> None:
    """No torch, no extension, no thread."""
    code = (
        "import sys, threading, onerec_engine as o; "
        "assert not {'torch', 'numpy', 'onerec_engine._C'} & set(sys.modules); "
        "o.Engine, o.Request, o.Catalogue, o.quantize_checkpoint; "
        "assert not {'torch', 'onerec_engine._C'} & set(sys.modules); "
        "assert threading.active_count() == 1; "
        "assert all(hasattr(o, name) for name in o.__all__) and set(o.__all__) <= set(dir(o)); "
        "print(o.__version__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
