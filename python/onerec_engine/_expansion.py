"""From beams to items, and from runs to the caller's batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from onerec_engine._arrays import Arrays, Ints, offsets_of, ranges, sizes_of
from onerec_engine._columns import Columns
from onerec_engine._trie_index import TrieIndex
from onerec_engine.errors import EngineError
from onerec_engine.result import BatchResult

if TYPE_CHECKING:
    from onerec_engine._C import PackedRequests

__all__ = ["Found", "collect", "expand", "want_finite"]


class Found(NamedTuple):
    """Results of B requests one behind the other; fields as in `Result`.

    Attributes:
        items: int64 [n].
        semantic_ids: int32 [n, levels].
        logprobs: float32 [n].
        legal: bool [n].
        offsets: int64 [B + 1]: request b has [offsets[b], offsets[b + 1]) of the above.
    """

    items: Ints
    semantic_ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]
    legal: npt.NDArray[np.bool_]
    offsets: Ints


def want_finite(status: npt.NDArray[np.int32], owners: Ints) -> None:
    """Refuses a run with a status that is not 0.

    Args:
        status: per request of the run.
        owners: their indices in the caller's batch.

    Raises:
        EngineError: naming the first one's index.
    """
    if any(status.tolist()):
        raise EngineError(
            f"[engine] request {owners[np.flatnonzero(status)[0]]}: got log-probabilities that are not finite. "
            "Check its dense features and the checkpoint's weights."
        )


def expand(beams: Arrays, num_results: Ints, run: Arrays, trie: TrieIndex) -> Found:
    """Turns beams into items: those of one semantic id by ascending id, without excluded ones, up to `num_results`.

    A beam of an unconstrained search that no item has stays, with the item -1 and `legal` false.

    Args:
        beams: what `_C.Core.run` answered for the run's B requests.
        num_results: [B].
        run: what it was given.
        trie: the catalogue.
    """
    return Found(*trie.items.expand(beams, run["constrained"], num_results, run["excluded"], run["excluded_offsets"]))


def _joined(found: Sequence[Found], runs: Sequence[Ints], levels: int) -> Found:
    """The results of any number of runs in the order of the requests, of which each is in one run."""
    place = np.concatenate([np.empty(0, np.int64), *runs])
    begins = offsets_of(np.concatenate([np.empty(0, np.int64), *(sizes_of(f.offsets) for f in found)]))
    starts, sizes = np.empty(place.size, np.int64), np.empty(place.size, np.int64)
    starts[place], sizes[place] = begins[:-1], sizes_of(begins)
    take = ranges(starts, sizes)
    return Found(
        items=np.concatenate([np.empty(0, np.int64), *(f.items for f in found)])[take],
        semantic_ids=np.concatenate([np.empty((0, levels), np.int32), *(f.semantic_ids for f in found)])[take],
        logprobs=np.concatenate([np.empty(0, np.float32), *(f.logprobs for f in found)])[take],
        legal=np.concatenate([np.empty(0, np.bool_), *(f.legal for f in found)])[take],
        offsets=offsets_of(sizes),
    )


def collect(found: Sequence[Found], runs: Sequence[Ints], columns: Columns, packed: PackedRequests) -> BatchResult:
    """The results of all runs in the caller's order.

    Args:
        found: per run.
        runs: the requests of each run, as `schedule` cut them.
        columns: the batch.
        packed: the same, packed.
    """
    whole = found[0] if len(found) == 1 else _joined(found, runs, columns.widths.shape[1])
    return BatchResult(
        items=whole.items,
        semantic_ids=whole.semantic_ids,
        logprobs=whole.logprobs,
        legal=whole.legal,
        offsets=whole.offsets,
        requested=columns.num_results,
        unknown_history=packed.unknown,
        truncated=packed.truncated,
        request_ids=columns.request_ids,
    )
