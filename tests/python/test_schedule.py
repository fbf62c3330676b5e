"""Context limits, and cutting calls into runs."""

from __future__ import annotations

import time

import numpy as np
import pytest
from batch_support import PLAIN, SETTINGS, everything, make_catalogue, prepare
from hypothesis import given, settings
from hypothesis import strategies as st
from support import pathway, tiny_config

from onerec_engine._columns import Schema
from onerec_engine._schedule import Limits, schedule
from onerec_engine._trie_index import TrieIndex
from onerec_engine.batching import context_limits, make_packer, pack, read_batch
from onerec_engine.request import Request


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5), room=st.integers(1, 80))
def test_context_limits(sizes: list[int], room: int) -> None:
    config = tiny_config(pathways=[pathway(f"p{i}", max_tokens=m) for i, m in enumerate(sizes)])
    if room < len(sizes):
        with pytest.raises(ValueError, match="max_context"):
            context_limits(config.pathways, room)
        return
    limits = context_limits(config.pathways, room)
    assert sum(limits) == min(room, sum(sizes))
    assert all(1 <= limit <= size for limit, size in zip(limits, sizes, strict=True))
    cut = [limit for limit, size in zip(limits, sizes, strict=True) if limit < size]
    assert not cut or max(limits) - min(cut) <= 1


def test_a_smaller_context_keeps_the_newest() -> None:
    arrays = everything(prepare([Request(history=[2, 4, 6, 8])], max_context=2))
    assert arrays["recent.positions"].tolist() == [1, 0]
    np.testing.assert_array_equal(arrays["recent.codes"], make_catalogue(PLAIN).semantic_ids[[3, 4]])


LIMITS = Limits(max_batch=4, max_rows=20, max_context_tokens=30, max_excluded=10)
costs = st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(0, 30), st.integers(0, 10))


@settings(deadline=None, max_examples=300)
@given(rows=st.lists(costs, max_size=40))
def test_schedule_respects_every_limit(rows: list[tuple[int, int, int, int]]) -> None:
    table = np.array(rows, np.int64).reshape(-1, 4)
    runs = schedule(table[:, :2], table[:, 2], table[:, 3], LIMITS)
    assert sorted(i for run in runs for i in run.tolist()) == list(range(len(rows)))
    for run in runs:
        assert 1 <= run.size <= LIMITS.max_batch
        assert (np.diff(run) > 0).all()
        assert (table[run].sum(axis=0) <= [20, 20, 30, 10]).all()


def test_schedule_keeps_like_with_like() -> None:
    widths = np.array([[20], [1]] * 8)
    none = np.zeros(16, np.int64)
    runs = schedule(widths, none, none, LIMITS)
    assert len(runs) == 8 + 2
    assert all(len(set(widths[run, 0])) == 1 for run in runs)


def test_schedule_of_one_run_keeps_the_order() -> None:
    widths = np.array([[1], [5], [3]])
    none = np.zeros(3, np.int64)
    assert [run.tolist() for run in schedule(widths, none, none, LIMITS)] == [[0, 1, 2]]


def test_preparing_sixteen_requests_takes_no_time() -> None:
    rng = np.random.default_rng(0)
    batch = [Request(history=rng.integers(0, 62, 50).tolist(), exclude_history=True) for _ in range(16)]
    schema, catalogue = Schema.of(PLAIN), make_catalogue(PLAIN)
    packer = make_packer(PLAIN, TrieIndex(catalogue), context_limits(PLAIN.pathways, PLAIN.max_context))
    times = []
    for _ in range(50):
        started = time.perf_counter()
        columns = read_batch(batch, schema, SETTINGS)
        packed = pack(columns, packer)
        packed.arrays(np.arange(16))
        times.append(time.perf_counter() - started)
    print(f"\nmedian {1e3 * np.median(times):.3f} ms, minimum {1e3 * min(times):.3f} ms")
    assert min(times) < 1e-3
