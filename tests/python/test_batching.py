"""From requests and dicts of arrays to packed arrays, against a plain loop."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from batch_support import FULL, PLAIN, as_dict, everything, full_request, make_catalogue, prepare, same
from hypothesis import given, settings
from hypothesis import strategies as st
from support import pathway, tiny_config

from onerec_engine._columns import Settings
from onerec_engine._trie_index import TrieIndex
from onerec_engine.catalogue import Catalogue
from onerec_engine.config import OneRecV2Config
from onerec_engine.request import Request


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
    """What `PackedRequests.arrays` gives, one token at a time."""
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


class DLPackOnly:
    """An array of another library: it has nothing but DLPack."""

    def __init__(self, array: Any) -> None:
        self._array = np.array(array)

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


def strided(array: Any) -> Any:
    return np.repeat(array, 2, axis=0)[::2]


def unaligned(array: Any) -> Any:
    return np.frombuffer(b"." + array.tobytes(), array.dtype, offset=1).reshape(array.shape)


def backwards(array: Any) -> Any:
    return np.ascontiguousarray(array[::-1])[::-1] if array.ndim else array


@pytest.mark.parametrize("convert", [torch.from_numpy, DLPackOnly, np.ndarray.tolist, strided, unaligned, backwards])
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


def test_packing_from_many_threads() -> None:
    """Batches so long that the GIL is released while they are packed."""
    batches = [
        [full_request([(seed + i) % 70 for i in range(700)], [2] * 30, seed) for _ in range(8)] for seed in range(6)
    ]
    want = [everything(prepare(batch, FULL)) for batch in batches]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            for got, expected in zip(
                pool.map(lambda batch: everything(prepare(batch, FULL)), batches), want, strict=True
            ):
                same(got, expected)


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
