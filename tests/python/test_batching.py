"""From requests and dicts of arrays to packed arrays: against a plain loop; every error names its request."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import EVERYTHING, pathway, tiny_config

from onerec_engine._columns import Schema, Settings
from onerec_engine._schedule import Limits, schedule
from onerec_engine._trie_index import TrieIndex
from onerec_engine.batching import Packed, context_limits, pack, read_batch
from onerec_engine.catalogue import Catalogue
from onerec_engine.config import OneRecV2Config
from onerec_engine.request import Request

PLAIN = tiny_config()
FULL = tiny_config(**EVERYTHING)
SETTINGS = Settings(
    widths=(8, 8, 8),
    num_results=None,
    default_results=5,
    constrained=True,
    exclude_history=False,
    max_beam_width=100,
)


def make_catalogue(config: OneRecV2Config, items: int = 30) -> Catalogue:
    rng = np.random.default_rng(3)
    codes = np.column_stack([rng.integers(0, size, items) for size in config.codebook_sizes])
    return Catalogue(np.arange(items) * 2, codes, codebook_sizes=config.codebook_sizes)  # even ids are known


def prepare(
    batch: Any, config: OneRecV2Config = PLAIN, settings: Settings = SETTINGS, max_context: int | None = None
) -> Packed:
    columns = read_batch(batch, Schema.of(config), settings)
    catalogue = make_catalogue(config)
    limits = context_limits(config.pathways, max_context or config.max_context)
    return pack(columns, config=config, catalogue=catalogue, trie=TrieIndex(catalogue), limits=limits)


def everything(packed: Packed) -> dict[str, Any]:
    return packed.arrays(np.arange(packed.size))


def same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for name, array in a.items():
        np.testing.assert_array_equal(array, b[name], err_msg=name)
        assert array.dtype == b[name].dtype


def full_request(history: Sequence[int], long_term: Sequence[int] = (), seed: int = 0, **more: Any) -> Request:
    rng = np.random.default_rng(seed)
    features = {
        "user.age": int(rng.integers(10)),
        "user.stats": rng.standard_normal(3),
        "recent.action": rng.integers(0, 5, len(history)),
        "recent.seconds": rng.standard_normal(len(history)),
        "long_term": list(long_term),
    }
    return Request(history=history, features=features, **more)


# --- packing ---


def test_dtypes_and_layout() -> None:
    batch = [full_request([2, 4, 6], [8], 0), full_request([], [10, 12], 1)]
    arrays = everything(prepare(batch, FULL))
    assert arrays["context_offsets"].tolist() == [0, 5, 8]
    assert arrays["user.rows"].tolist() == [0, 5]
    assert arrays["recent.rows"].tolist() == [1, 2, 3]
    assert arrays["long.rows"].tolist() == [4, 6, 7]
    assert arrays["recent.positions"].tolist() == [2, 1, 0]  # by recency
    assert arrays["long.positions"].tolist() == [0, 0, 1]  # absolute
    assert "user.codes" not in arrays
    assert arrays["user.dense"].shape == (2, 3)
    assert arrays["long.dense"].shape == (3, 0)
    for name, array in arrays.items():
        want = {"dense": np.float32, "constrained": np.uint8}.get(name.split(".")[-1], np.int32)
        assert array.dtype == want, name
        assert array.flags.c_contiguous, name


def _loop(batch: Sequence[Request], config: OneRecV2Config, catalogue: Catalogue) -> dict[str, Any]:
    """What `Packed.arrays` gives, one token at a time."""
    at = {int(item): i for i, item in enumerate(catalogue.item_ids)}
    order = TrieIndex(catalogue).order.tolist()
    out: dict[str, list[Any]] = {"context_offsets": [0], "excluded": [], "excluded_offsets": [0]}
    for request in batch:
        row = out["context_offsets"][-1]
        for p in config.pathways:
            lists = {k: out.setdefault(f"{p.name}.{k}", []) for k in ("rows", "positions", "categorical", "dense")}
            source = request.history if p.source == "history" else request.features.get(p.source, [])
            tokens: list[int | None] = [None]
            if p.kind == "items":
                tokens = [i for i, item in enumerate(source) if int(item) in at][-p.max_tokens :]
            for nth, token in enumerate(tokens):
                if token is not None:
                    out.setdefault(f"{p.name}.codes", []).append(catalogue.semantic_ids[at[int(source[token])]])
                newest = len(tokens) - 1 - nth
                lists["positions"].append(newest if p.position_embedding == "recency" else nth)
                lists["rows"].append(row)
                values = {f.name: request.features[f"{p.name}.{f.name}"] for f in p.fields}
                own = {name: v if token is None else v[token] for name, v in values.items()}
                lists["categorical"].append([own[f.name] for f in p.categorical_fields])
                lists["dense"].append([x for f in p.dense_fields for x in np.atleast_1d(own[f.name])])
                row += 1
        out["context_offsets"].append(row)
        gone = [*request.exclude, *(request.history if request.exclude_history else [])]
        out["excluded"] += sorted({order.index(at[int(item)]) for item in gone if int(item) in at})
        out["excluded_offsets"].append(len(out["excluded"]))
    return out


ids = st.lists(st.integers(-3, 62), max_size=14)
requests = st.builds(full_request, ids, ids, st.integers(0, 99), exclude=ids, exclude_history=st.booleans())


@settings(deadline=None, max_examples=150)
@given(batch=st.lists(requests, max_size=5))
def test_matches_a_loop(batch: list[Request]) -> None:
    packed = prepare(batch, FULL)
    got = everything(packed)
    for name, values in _loop(batch, FULL, make_catalogue(FULL)).items():
        want = np.array(values, got[name].dtype).reshape(got[name].shape)
        np.testing.assert_array_equal(got[name], want, err_msg=name)
    known = [[sum(0 <= i < 60 and i % 2 == 0 for i in r) for r in _lists(b)] for b in batch]
    assert packed.unknown.tolist() == [sum(map(len, _lists(b))) - sum(k) for b, k in zip(batch, known, strict=True)]
    assert packed.truncated.tolist() == [max(a - 6, 0) + max(b - 9, 0) for a, b in known]


def _lists(request: Request) -> tuple[Sequence[int], Sequence[int]]:
    return request.history, request.features["long_term"]


@settings(deadline=None, max_examples=60)
@given(batch=st.lists(requests, min_size=1, max_size=5), data=st.data())
def test_runs_are_rows_of_the_whole(batch: list[Request], data: st.DataObject) -> None:
    chosen = np.array(data.draw(st.lists(st.integers(0, len(batch) - 1), max_size=4)), np.int64)
    same(prepare(batch, FULL).arrays(chosen), everything(prepare([batch[i] for i in chosen], FULL)))


@settings(deadline=None, max_examples=60)
@given(batch=st.lists(requests, max_size=4))
def test_dict_of_arrays_is_the_same(batch: list[Request]) -> None:
    same(everything(prepare(as_dict(batch), FULL)), everything(prepare(batch, FULL)))


def as_dict(batch: Sequence[Request], convert: Any = np.asarray) -> dict[str, Any]:
    def offsets(lists: Sequence[Sequence[Any]]) -> Any:
        return convert(np.cumsum([0, *map(len, lists)]))

    def flat(lists: Sequence[Any], dtype: type[np.generic]) -> Any:
        return convert(np.concatenate([np.empty(0, dtype), *(np.asarray(x, dtype).reshape(-1) for x in lists)]))

    long_term = [r.features["long_term"] for r in batch]
    return {
        "item_ids": flat([r.history for r in batch], np.int64),
        "offsets": offsets([r.history for r in batch]),
        "long_term": flat(long_term, np.int64),
        "long_term.offsets": offsets(long_term),
        "user.age": flat([r.features["user.age"] for r in batch], np.int32),
        "user.stats": convert(np.array([r.features["user.stats"] for r in batch], np.float32).reshape(len(batch), 3)),
        "recent.action": flat([r.features["recent.action"] for r in batch], np.uint8),
        "recent.seconds": flat([r.features["recent.seconds"] for r in batch], np.float32),
        "exclude": flat([r.exclude for r in batch], np.int64),
        "exclude.offsets": offsets([r.exclude for r in batch]),
        "exclude_history": convert(np.array([bool(r.exclude_history) for r in batch], np.bool_)),
    }


class DLPackOnly:
    """An array of another library: it has nothing but DLPack."""

    def __init__(self, array: Any) -> None:
        self._array = np.array(array)

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


@pytest.mark.parametrize(
    "convert", [torch.from_numpy, DLPackOnly, np.ndarray.tolist, lambda a: a[::1].copy()[::-1][::-1]]
)
def test_other_libraries(convert: Any) -> None:
    batch = [full_request([2, 4, 99], [8], 0, exclude=[2], exclude_history=True), full_request([6], [10, 12], 1)]
    same(everything(prepare(as_dict(batch, convert), FULL)), everything(prepare(batch, FULL)))
    single = [
        Request(
            history=convert(np.array(r.history)),
            features={k: convert(np.array(v)) if np.ndim(v) else v for k, v in r.features.items()},
            exclude=convert(np.array(r.exclude, np.int64)),
            exclude_history=r.exclude_history,
        )
        for r in batch
    ]
    same(everything(prepare(single, FULL)), everything(prepare(batch, FULL)))


def test_torch_features_of_one_number() -> None:
    batch = [full_request([2])]
    batch[0].features["user.age"] = torch.tensor(3)  # type: ignore[index]
    assert everything(prepare(batch, FULL))["user.categorical"].tolist() == [[3]]


def test_features_of_empty_histories_may_be_left_out() -> None:
    request = Request(features={"user.age": 1, "user.stats": [0, 0, 0], "long_term": []})
    assert everything(prepare([request], FULL))["context_offsets"].tolist() == [0, 1]


def test_counts_each_list_once() -> None:
    config = tiny_config(pathways=[pathway("short", max_tokens=2), pathway("whole", max_tokens=4)])
    packed = prepare([Request(history=[1, 2, 4, 6, 8, 10, 12])], config)
    assert packed.unknown.tolist() == [1]
    assert packed.truncated.tolist() == [2]
    assert packed.context_sizes.tolist() == [6]


def test_empty_batch() -> None:
    packed = prepare([])
    assert packed.size == 0
    assert everything(packed)["context_offsets"].tolist() == [0]
    assert prepare({"item_ids": [], "offsets": [0]}).size == 0


def test_useless_beams_are_not_computed() -> None:
    wide = Settings(
        widths=(100, 100, 100),
        num_results=None,
        default_results=5,
        constrained=True,
        exclude_history=False,
        max_beam_width=100,
    )
    edges = TrieIndex(make_catalogue(PLAIN)).edges
    packed = prepare([Request(), Request(constrained=False)], settings=wide)
    assert packed.widths.tolist() == [[min(100, e) for e in edges], [8, 48, 100]]


# --- settings ---


def read(batch: Any, config: OneRecV2Config = PLAIN, **changes: Any) -> Any:
    call: dict[str, Any] = {"beam_width": None, "num_results": None, "constrained": True, "exclude_history": False}
    return read_batch(batch, Schema.of(config), SETTINGS.changed(**call | changes))


def test_requests_win_over_the_call() -> None:
    batch = [
        Request(),
        Request(beam_width=3, num_results=2, constrained=False, exclude_history=True, request_id="x"),
        Request(beam_width=np.array([1, 2, 4])),
        Request(beam_width=torch.tensor([1, 2, 4]), constrained=True),
    ]
    columns = read(batch, beam_width=[7, 6, 5], constrained=False)
    assert columns.widths.tolist() == [[7, 6, 5], [3, 3, 3], [1, 2, 4], [1, 2, 4]]
    assert columns.num_results.tolist() == [5, 2, 4, 4]
    assert columns.constrained.tolist() == [False, False, False, True]
    assert columns.exclude_history.tolist() == [False, True, False, False]
    assert columns.request_ids == [None, "x", None, None]


def test_settings_of_a_dict() -> None:
    batch = {
        "item_ids": [],
        "offsets": [0, 0, 0],
        "beam_width": [3, 4],
        "num_results": [2, 4],
        "constrained": [True, False],
        "request_id": ["a", "b"],
    }
    columns = read(batch)
    assert columns.widths.tolist() == [[3, 3, 3], [4, 4, 4]]
    assert columns.num_results.tolist() == [2, 4]
    assert columns.constrained.tolist() == [True, False]
    assert columns.request_ids == ["a", "b"]
    assert read(batch | {"beam_width": [[9, 9, 3], [9, 9, 4]]}).widths.tolist() == [[9, 9, 3], [9, 9, 4]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beam_width": 0}, "beam_width .0, 0, 0., want 1 to 100"),
        ({"beam_width": 101}, "Raise max_beam_width"),
        ({"beam_width": 10**30}, "Raise max_beam_width"),
        ({"beam_width": [1, 2]}, r"shape \[2\], want an integer or one per level \[3\]"),
        ({"beam_width": 2.5}, "64-bit integers"),
        ({"num_results": 1.5}, "num_results: got 1.5"),
    ],
)
def test_call_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^\[engine\].*{message}"):
        read([], **changes)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(beam_width=0), "beam_width .0, 0, 0."),
        (Request(beam_width=101), "Raise max_beam_width"),
        (Request(beam_width=[1, 2]), "want an integer or one per level"),
        (Request(num_results=0), "num_results 0, want 1 to 8"),
        (Request(num_results=9), "num_results 9, want 1 to 8, its last beam width"),
        (Request(num_results=-1), "num_results 0"),
        (Request(num_results="3"), "num_results: got '3'"),  # type: ignore[arg-type]
        (Request(history=[1.5]), "history: got float64 .1., want 64-bit integers"),
        (Request(history=["a"]), "history: got <U1"),
        (Request(history=[2**70]), "history: got object"),
        (Request(history=[2**64 - 1]), "history: got uint64"),
        (Request(history=[[1, 2]]), "want a flat list"),
        (Request(history=3), "want a flat list"),
        (Request(history=[[1], [2, 3]]), "history: got list, want an array"),
        (Request(history=torch.zeros(2, dtype=torch.bfloat16)), "history: got Tensor, want an array on the CPU"),
        (Request(history=torch.zeros(2, dtype=torch.int64, device="meta")), "history: got Tensor"),
        (Request(exclude=[0.5]), "exclude: got float64"),
        (Request(features={"colour": 1}), "unknown features .'colour'"),
        (Request(features=[1]), "features of type list"),  # type: ignore[arg-type]
    ],
)
def test_request_errors(request_: Request, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^\[batch\] request 1: .*{message}"):
        read([Request(), request_])


def test_num_results_of_the_call_is_checked_per_request() -> None:
    with pytest.raises(ValueError, match="request 1: got num_results 6, want 1 to 4"):
        read([Request(), Request(beam_width=4)], num_results=6)
    assert read([Request(beam_width=4)]).num_results.tolist() == [4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user.age": 10}, r"user.age: got 10, want an id in \[0, 10\)"),
        ({"user.age": -1}, "user.age: got -1"),
        ({"user.age": 1.5}, "64-bit integers"),
        ({"user.age": [1, 2]}, "user.age: got shape .2., want one value"),
        ({"user.stats": [1.0, 2.0]}, "user.stats: got shape .2., want one value of 3 numbers"),
        ({"user.stats": [1, 2, np.nan]}, "user.stats: got .1.0, 2.0, nan., want finite"),
        ({"user.stats": [1, 2, 1e300]}, "want finite numbers that float32 can hold"),
        ({"user.stats": ["a", "b", "c"]}, "want real numbers"),
        ({"recent.action": [0, 5]}, "recent.action: got 5"),
        ({"recent.action": [0]}, "recent.action: got shape .1., want 2 values"),
        ({"recent.seconds": [0.0, -np.inf]}, "recent.seconds: got .-inf."),
        ({"recent.seconds": [[0.0, 1.0]]}, r"recent.seconds: got shape \[1, 2\]"),
        ({"long_term": "abc"}, "long_term: got <U3"),
        ({"user.age": ...}, "lacks the feature 'user.age'"),
        ({"recent.action": ...}, "lacks the feature 'recent.action'"),
        ({"long_term": ...}, "lacks the feature 'long_term'"),
    ],
)
def test_feature_errors(change: dict[str, Any], message: str) -> None:
    good, bad = full_request([2, 4]), full_request([2, 4], seed=1)
    features = {k: v for k, v in (dict(bad.features) | change).items() if v is not ...}
    with pytest.raises(ValueError, match=rf"^\[batch\] request 1: .*{message}"):
        read([good, Request(history=bad.history, features=features)], FULL)


def test_features_of_dropped_and_cut_tokens_count_too() -> None:
    features = dict(full_request([2] * 20).features) | {"recent.action": [9] + [0] * 19}
    with pytest.raises(ValueError, match=r"request 0: recent\.action: got 9"):
        read([Request(history=[2] * 20, features=features)], FULL)


@pytest.mark.parametrize("batch", [Request(), "abc", 3, None])
def test_what_is_no_batch(batch: Any) -> None:
    with pytest.raises(ValueError, match="want a list of requests or a dict of arrays"):
        read(batch)


def test_what_is_no_request() -> None:
    with pytest.raises(ValueError, match="request 1: got a dict, want a Request"):
        read([Request(), {"history": []}])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offsets": ...}, "lacks the arrays .'offsets'"),
        ({"user.age": ...}, "lacks the arrays .'user.age'"),
        ({"long_term.offsets": ...}, "lacks the arrays"),
        ({"exclude.offsets": ...}, "lacks the array 'exclude.offsets'"),
        ({"histories": 1}, "unknown arrays .'histories'"),
        ({"offsets": [1, 2, 3]}, "offsets: got 1 to 3, want 0 to 3"),
        ({"offsets": [0, 2, 4]}, "offsets: got 0 to 4, want 0 to 3"),
        ({"offsets": [0, 4, 3]}, "request 1: offsets falls from 4 to 3"),
        ({"offsets": [[0, 3]]}, "offsets: got shape"),
        ({"offsets": []}, "offsets: got shape .0., want .1."),
        ({"offsets": [0, 3]}, "long_term.offsets: got shape .3., want .2."),
        ({"item_ids": [[2, 4, 6]]}, "one flat array"),
        ({"item_ids": [2.0, 4.0, 6.0]}, "64-bit integers"),
        ({"user.age": [1]}, "user.age: got shape .1., want .2."),
        ({"user.stats": [[1, 2]] * 2}, r"user.stats: got shape \[2, 2\], want \[2, 3\]"),
        ({"recent.action": [0, 0, 7]}, "request 1: recent.action: got 7"),
        ({"user.age": [3, 12]}, "request 1: user.age: got 12"),
        ({"num_results": [1]}, "num_results: got shape"),
        ({"num_results": [1, 9]}, "request 1: got num_results 9"),
        ({"num_results": [1, -1]}, "request 1: got num_results 0"),
        ({"beam_width": [1]}, "beam_width: got shape"),
        ({"beam_width": [1, 200]}, "request 1: got beam_width"),
        ({"constrained": [0.5, 1]}, "constrained: got float64"),
        ({"request_id": ["a"]}, "request_id: got 1 entries, want 2"),
    ],
)
def test_dict_errors(change: dict[str, Any], message: str) -> None:
    batch = as_dict([full_request([2, 4], exclude=[3]), full_request([6])])
    batch = {k: v for k, v in (batch | change).items() if v is not ...}
    with pytest.raises(ValueError, match=rf"^\[batch\] .*{message}"):
        read(batch, FULL)


# --- limits ---


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
    trie, limits = TrieIndex(catalogue), context_limits(PLAIN.pathways, PLAIN.max_context)
    times = []
    for _ in range(50):
        started = time.perf_counter()
        columns = read_batch(batch, schema, SETTINGS)
        packed = pack(columns, config=PLAIN, catalogue=catalogue, trie=trie, limits=limits)
        packed.arrays(np.arange(16))
        times.append(time.perf_counter() - started)
    print(f"\nmedian {1e3 * np.median(times):.3f} ms, minimum {1e3 * min(times):.3f} ms")
    assert min(times) < 1e-3
