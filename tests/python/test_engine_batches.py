"""What a batch may be, what its settings do, and results that fall short."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_support import agree, equal, items_of, ranking, requests
from support import write_checkpoint

from onerec_engine import (
    Engine,
    Recommendation,
    Request,
    Result,
)

LEVELS = 3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("engine") / "plain", items=60)


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Iterator[Engine]:
    with Engine.from_checkpoint(checkpoint, threads=1) as engine:
        yield engine


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


# --- results ---


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
