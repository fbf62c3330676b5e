"""What tests of a loaded engine share."""

from __future__ import annotations

from typing import Any

import numpy as np

from onerec_engine import BatchResult, Engine, Request, Result


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
