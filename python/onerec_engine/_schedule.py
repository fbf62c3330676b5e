"""Cutting any number of requests into runs that fit the engine's plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onerec_engine._arrays import Ints

__all__ = ["Limits", "schedule"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one run can hold.

    Attributes:
        max_batch: requests.
        max_rows: beams of all requests together, at every level.
        max_context_tokens: context tokens of all requests together.
        max_excluded: excluded items of all requests together.
    """

    max_batch: int
    max_rows: int
    max_context_tokens: int
    max_excluded: int


def schedule(
    widths: npt.NDArray[np.signedinteger[Any]], context_sizes: Ints, excluded_sizes: Ints, limits: Limits
) -> list[Ints]:
    """Chooses which requests run together: those of like size, so that runs are full and even.

    Requests that fit one run stay together in their order. Otherwise they are taken from wide to narrow and, where
    equally wide, from long to short, and a run ends before the first that does not fit.

    Args:
        widths: [B, levels], beams kept after each level.
        context_sizes: [B], context tokens.
        excluded_sizes: [B], excluded items.
        limits: of one run; every single request fits them.

    Returns:
        the indices of each run's requests, ascending; together each of 0 .. B-1 once.
    """
    size = len(widths)
    if size == 0:
        return []
    if (
        size <= limits.max_batch
        and context_sizes.sum() <= limits.max_context_tokens
        and excluded_sizes.sum() <= limits.max_excluded
        and widths.sum(axis=0, dtype=np.int64).max() <= limits.max_rows
    ):
        return [np.arange(size)]
    costs = np.column_stack([widths, context_sizes, excluded_sizes]).astype(np.int64)
    levels = widths.shape[1]
    most = np.array([limits.max_rows] * levels + [limits.max_context_tokens, limits.max_excluded])
    order = np.lexsort((np.arange(size), -costs[:, levels], -costs[:, :levels].max(axis=1)))
    reached = np.cumsum(costs[order], axis=0)
    runs, begin, before = [], 0, np.zeros(levels + 2, np.int64)
    while begin < size:
        # The sums only grow, so each limit is first passed where a binary search says.
        ends = [np.searchsorted(reached[:, c], before[c] + most[c], side="right") for c in range(levels + 2)]
        end = max(begin + 1, min(*ends, begin + limits.max_batch))
        runs.append(np.sort(order[begin:end]))
        before = reached[end - 1]
        begin = end
    return runs
