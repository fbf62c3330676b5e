"""From beams to items, and from runs to the caller's batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onerec_engine._arrays import Ints, offsets_of, ranges, sizes_of
from onerec_engine._columns import Columns
from onerec_engine._trie_index import TrieIndex
from onerec_engine.batching import Packed
from onerec_engine.catalogue import Catalogue
from onerec_engine.errors import EngineError
from onerec_engine.result import NO_ITEM, BatchResult

__all__ = ["Beams", "Found", "collect", "expand", "want_finite"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Beams:
    """The beams of a run's B requests after the last level, best first within a request.

    Attributes:
        scores: float32 [R], log-probabilities.
        codes: int32 [R, levels].
        leaves: int32 [R]; -1 for a dead beam; any other number where the search was not constrained.
        offsets: int64 [B + 1].
        constrained: bool [B].
        excluded: int32, trie positions, ascending within a request.
        excluded_offsets: int64 [B + 1].
        num_results: int64 [B].
    """

    scores: npt.NDArray[np.float32]
    codes: npt.NDArray[np.int32]
    leaves: npt.NDArray[np.int32]
    offsets: Ints
    constrained: npt.NDArray[np.bool_]
    excluded: npt.NDArray[np.int32]
    excluded_offsets: Ints
    num_results: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Results one behind the other, request by request; fields as in `Result`, `sizes` int64 [B]."""

    items: Ints
    semantic_ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]
    legal: npt.NDArray[np.bool_]
    sizes: Ints


def want_finite(status: npt.NDArray[np.int32], owners: Ints) -> None:
    """Refuses a run with a status that is not 0.

    Args:
        status: per request of the run.
        owners: their indices in the caller's batch.

    Raises:
        EngineError: naming the first one's index.
    """
    bad = np.flatnonzero(status)
    if bad.size:
        raise EngineError(
            f"[engine] request {owners[bad[0]]}: got log-probabilities that are not finite. "
            "Check its dense features and the checkpoint's weights."
        )


def expand(beams: Beams, catalogue: Catalogue, trie: TrieIndex) -> Found:
    """Turns beams into items: those of one semantic id by ascending id, without excluded ones, up to `num_results`.

    A beam of an unconstrained search that no item has stays, with the item -1 and `legal` false.
    """
    size = beams.offsets.size - 1
    beam = np.flatnonzero((beams.leaves >= 0) & (beams.scores > -np.inf))
    bounds = np.searchsorted(beam, beams.offsets)
    sizes = sizes_of(bounds)
    if not beams.excluded.size:
        # A beam is at least one result, so that none behind the first num_results of a request is looked up.
        sizes = np.minimum(sizes, beams.num_results)
        beam = beam[ranges(bounds[:-1], sizes)]
    leaf = beams.leaves[beam].astype(np.int64)
    free = not beams.constrained.all()
    if free:
        of_free = np.flatnonzero(~np.repeat(beams.constrained, sizes))
        leaf[of_free] = trie.leaves_of(beams.codes[beam[of_free]])
    position = trie.leaf_items[leaf].astype(np.int64)
    count = trie.leaf_items[leaf + 1] - position
    if free:
        position[leaf < 0] = NO_ITEM
        count[leaf < 0] = 1
    if beams.excluded.size or (count != 1).any():
        owner = np.repeat(np.arange(size), sizes)
        beam, owner, position = np.repeat(beam, count), np.repeat(owner, count), ranges(position, count)
        if beams.excluded.size:
            keep = ~_is_excluded(owner, position, beams, len(catalogue))
            beam, owner, position = beam[keep], owner[keep], position[keep]
        rank = np.arange(beam.size) - offsets_of(np.bincount(owner, minlength=size))[owner]
        keep = rank < beams.num_results[owner]
        beam, owner, position = beam[keep], owner[keep], position[keep]
        sizes = np.bincount(owner, minlength=size)
    legal = position >= 0
    items = catalogue.item_ids[trie.order[position]]
    return Found(
        items=np.where(legal, items, NO_ITEM) if free else items,
        semantic_ids=beams.codes[beam],
        logprobs=beams.scores[beam],
        legal=legal,
        sizes=sizes,
    )


def _is_excluded(owner: Ints, position: Ints, beams: Beams, n: int) -> npt.NDArray[np.bool_]:
    holder = np.repeat(np.arange(beams.offsets.size - 1), sizes_of(beams.excluded_offsets))
    keys = holder * n + beams.excluded
    key = owner * n + position
    at = np.minimum(np.searchsorted(keys, key), keys.size - 1)
    found: npt.NDArray[np.bool_] = (keys[at] == key) & (position >= 0)
    return found


def _joined(found: Sequence[Found], runs: Sequence[Ints], levels: int) -> Found:
    """The results of any number of runs in the order of the requests, of which each is in one run."""
    place = np.concatenate([np.empty(0, np.int64), *runs])
    begins = offsets_of(np.concatenate([np.empty(0, np.int64), *(f.sizes for f in found)]))
    starts, sizes = np.empty(place.size, np.int64), np.empty(place.size, np.int64)
    starts[place], sizes[place] = begins[:-1], sizes_of(begins)
    take = ranges(starts, sizes)
    return Found(
        items=np.concatenate([np.empty(0, np.int64), *(f.items for f in found)])[take],
        semantic_ids=np.concatenate([np.empty((0, levels), np.int32), *(f.semantic_ids for f in found)])[take],
        logprobs=np.concatenate([np.empty(0, np.float32), *(f.logprobs for f in found)])[take],
        legal=np.concatenate([np.empty(0, np.bool_), *(f.legal for f in found)])[take],
        sizes=sizes,
    )


def collect(found: Sequence[Found], runs: Sequence[Ints], columns: Columns, packed: Packed) -> BatchResult:
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
        offsets=offsets_of(whole.sizes),
        requested=columns.num_results,
        unknown_history=packed.unknown,
        truncated=packed.truncated,
        request_ids=columns.request_ids,
    )
