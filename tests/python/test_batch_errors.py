"""Settings of calls and requests, and what is refused: every error names its request."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from batch_support import FULL, PLAIN, SETTINGS, as_dict, full_request

from onerec_engine._columns import Schema
from onerec_engine.batching import read_batch
from onerec_engine.config import OneRecV2Config
from onerec_engine.request import Request


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
