"""What was recommended: one result per request, and the batch as arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from onerec_engine._arrays import Ints, sizes_of

__all__ = ["NO_ITEM", "BatchResult", "Recommendation", "Result"]

NO_ITEM = -1
"""Stands for an item where there is none: behind the last one of a padded row, or for a semantic id of no item."""


class Recommendation(NamedTuple):
    """One recommended item.

    Attributes:
        item: its id; -1 where an unconstrained search found a semantic id that no item has.
        semantic_id: its codes, one per level.
        logprob: natural logarithm of the semantic id's probability: the sum of its codes' log-probabilities over their
            full codebooks.
    """

    item: int
    semantic_id: tuple[int, ...]
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result(Sequence[Recommendation]):
    """The recommendations of one request, best first; a sequence of `Recommendation`.

    Attributes:
        items: int64 [k], item ids.
        semantic_ids: int32 [k, levels].
        logprobs: float32 [k], not ascending. Items that share a semantic id share its log-probability and follow each
            other by ascending id.
        legal: bool [k]: whether an item has the semantic id. All true in a constrained search.
        requested: how many were asked for.
        unknown_history: item ids of the request's histories that the catalogue does not have.
        truncated: known item ids that no pathway had room for, the oldest ones.
        request_id: the request's.
    """

    items: Ints
    semantic_ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]
    legal: npt.NDArray[np.bool_]
    requested: int
    unknown_history: int = 0
    truncated: int = 0
    request_id: Any = None

    @property
    def num_results(self) -> int:
        """How many there are [k]."""
        return int(self.items.size)

    @property
    def complete(self) -> bool:
        """Whether there are as many as asked for; fewer where fewer beams led to legal items that are not excluded."""
        return self.items.size == self.requested

    def __len__(self) -> int:
        return int(self.items.size)

    @overload
    def __getitem__(self, index: int) -> Recommendation: ...
    @overload
    def __getitem__(self, index: slice) -> list[Recommendation]: ...
    def __getitem__(self, index: int | slice) -> Recommendation | list[Recommendation]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        codes = tuple(int(code) for code in self.semantic_ids[index])
        return Recommendation(int(self.items[index]), codes, float(self.logprobs[index]))

    def __repr__(self) -> str:
        return f"Result({self.num_results} of {self.requested}: items={self.items.tolist()})"


class BatchResult(Sequence[Result]):
    """The results of a call in the order of its requests; also as arrays of the whole batch.

    The padded arrays have K columns, K the largest number of results asked for in the call.
    """

    __slots__ = (
        "_items",
        "_legal",
        "_logprobs",
        "_offsets",
        "_request_ids",
        "_semantic_ids",
        "requested",
        "truncated",
        "unknown_history",
    )

    def __init__(
        self,
        *,
        items: Ints,
        semantic_ids: npt.NDArray[np.int32],
        logprobs: npt.NDArray[np.float32],
        legal: npt.NDArray[np.bool_],
        offsets: Ints,
        requested: Ints,
        unknown_history: Ints,
        truncated: Ints,
        request_ids: Sequence[Any] | None = None,
    ) -> None:
        """Takes the requests' results one behind the other.

        Args:
            items: int64 [n].
            semantic_ids: int32 [n, levels].
            logprobs: float32 [n].
            legal: bool [n].
            offsets: int64 [B + 1]: request b has [offsets[b], offsets[b + 1]) of the above.
            requested: int64 [B].
            unknown_history: int64 [B].
            truncated: int64 [B].
            request_ids: one per request, or None.
        """
        self._items = items
        self._semantic_ids = semantic_ids
        self._logprobs = logprobs
        self._legal = legal
        self._offsets = offsets
        self._request_ids = request_ids
        self.requested = requested
        self.unknown_history = unknown_history
        self.truncated = truncated

    @property
    def items(self) -> Ints:
        """Item ids, int64 [B, K], padded with -1."""
        return self._padded(self._items, NO_ITEM)

    @property
    def semantic_ids(self) -> npt.NDArray[np.int32]:
        """Codes, int32 [B, K, levels], padded with -1."""
        return self._padded(self._semantic_ids, -1)

    @property
    def logprobs(self) -> npt.NDArray[np.float32]:
        """Log-probabilities, float32 [B, K], padded with -inf."""
        return self._padded(self._logprobs, -np.inf)

    @property
    def legal(self) -> npt.NDArray[np.bool_]:
        """Whether an item has the semantic id, bool [B, K], padded with False."""
        return self._padded(self._legal, False)

    @property
    def counts(self) -> Ints:
        """How many results each request has, int64 [B]."""
        return sizes_of(self._offsets)

    @property
    def complete(self) -> npt.NDArray[np.bool_]:
        """Whether each request has as many results as asked for, bool [B]."""
        return np.equal(self.counts, self.requested)

    def __len__(self) -> int:
        return int(self._offsets.size) - 1

    @overload
    def __getitem__(self, index: int) -> Result: ...
    @overload
    def __getitem__(self, index: slice) -> list[Result]: ...
    def __getitem__(self, index: int | slice) -> Result | list[Result]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        b = range(len(self))[index]
        rows = slice(int(self._offsets[b]), int(self._offsets[b + 1]))
        return Result(
            items=self._items[rows],
            semantic_ids=self._semantic_ids[rows],
            logprobs=self._logprobs[rows],
            legal=self._legal[rows],
            requested=int(self.requested[b]),
            unknown_history=int(self.unknown_history[b]),
            truncated=int(self.truncated[b]),
            request_id=None if self._request_ids is None else self._request_ids[b],
        )

    def __iter__(self) -> Iterator[Result]:
        return (self[b] for b in range(len(self)))

    def __repr__(self) -> str:
        return f"BatchResult({len(self)} requests, {self._items.size} items)"

    def _padded(self, flat: npt.NDArray[Any], fill: object) -> npt.NDArray[Any]:
        width = int(self.requested.max(initial=0))
        out = np.full((len(self), width, *flat.shape[1:]), fill, flat.dtype)
        out[np.arange(width) < self.counts[:, None]] = flat
        return out
