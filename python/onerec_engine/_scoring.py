"""Given semantic ids as the rows of forced runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onerec_engine._arrays import Arrays, Ints, as_ints, offsets_of, ranges, sizes_of

if TYPE_CHECKING:
    from onerec_engine._C import PackedRequests

__all__ = ["Candidates", "Pieces", "read_candidates", "split_candidates"]


@dataclass(frozen=True, slots=True)
class Candidates:
    """Request b is to be scored on codes[offsets[b] : offsets[b + 1]]: int32 [R, levels], int64 [B + 1]."""

    codes: npt.NDArray[np.int32]
    offsets: Ints


@dataclass(frozen=True, slots=True)
class Pieces:
    """Parts of requests that are small enough for one run: all int64 [P].

    Attributes:
        owners: the request.
        starts: the first row of `Candidates.codes`.
        sizes: how many rows, at least 1.
    """

    owners: Ints
    starts: Ints
    sizes: Ints

    def rows(self, chosen: Ints) -> Ints:
        """The rows of `Candidates.codes` of the pieces `chosen`."""
        return ranges(self.starts[chosen], self.sizes[chosen])

    def arrays(self, packed: PackedRequests, given: Candidates, chosen: Ints) -> Arrays:
        """What `_C.Core.run` takes for the pieces `chosen`."""
        out = packed.arrays(self.owners[chosen])
        count, levels = chosen.size, given.codes.shape[1]
        widths = np.empty((count, levels), np.int32)
        widths[:] = self.sizes[chosen][:, None]
        return out | {
            "forced": given.codes[self.rows(chosen)],
            "widths": widths,
            "constrained": np.zeros(count, np.uint8),
            "excluded": np.empty(0, np.int32),
            "excluded_offsets": np.zeros(count + 1, np.int32),
        }


def read_candidates(semantic_ids: Sequence[Any] | Any, size: int, codebook_sizes: Sequence[int]) -> Candidates:
    """Reads [n, levels] integers per request, or [B, n, levels] at once.

    Args:
        semantic_ids: see above.
        size: requests B.
        codebook_sizes: codes per level.

    Raises:
        ValueError: for another shape or a code out of range; names the request's index.
    """
    levels = len(codebook_sizes)
    try:
        given = len(semantic_ids)
    except TypeError:
        raise ValueError(f"[score] got {type(semantic_ids).__name__}, want one array of codes per request.") from None
    if given != size:
        raise ValueError(f"[score] got semantic_ids for {given} requests, want {size}: one array per request.")
    parts = []
    for b in range(size):
        codes = as_ints(semantic_ids[b], f"[score] request {b}: semantic_ids")
        if codes.size == 0:
            codes = codes.reshape(0, levels)
        if codes.ndim != 2 or codes.shape[1] != levels:
            raise ValueError(f"[score] request {b}: got semantic_ids of shape {list(codes.shape)}, want [n, {levels}].")
        parts.append(codes)
    offsets = offsets_of([len(part) for part in parts])
    codes = np.concatenate([np.empty((0, levels), np.int64), *parts])
    wrong = np.flatnonzero(((codes < 0) | (codes >= np.array(codebook_sizes))).any(axis=1))
    if wrong.size:
        row = int(wrong[0])
        b = int(np.searchsorted(offsets, row, side="right")) - 1
        raise ValueError(
            f"[score] request {b}: got semantic id {codes[row].tolist()}, want codes below {list(codebook_sizes)}."
        )
    return Candidates(codes.astype(np.int32), offsets)


def split_candidates(given: Candidates, max_rows: int) -> Pieces:
    """Cuts requests with more than `max_rows` semantic ids; requests without any get no piece."""
    sizes = sizes_of(given.offsets)
    count = -(-sizes // max_rows)
    owners = np.repeat(np.arange(sizes.size), count)
    nth = ranges(np.zeros_like(count), count)
    starts = given.offsets[:-1][owners] + nth * max_rows
    return Pieces(owners, starts, np.minimum(max_rows, given.offsets[1:][owners] - starts))
