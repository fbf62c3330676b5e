"""The largest run an engine accepts, and what it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from onerec_engine._arrays import Arrays, offsets_of, ranges
from onerec_engine._schedule import Limits
from onerec_engine._trie_index import TrieIndex
from onerec_engine.catalogue import Catalogue
from onerec_engine.config import OneRecV2Config

__all__ = ["largest_batch", "parts", "uniform_batch"]

_WHOLES = ("arena", "total")


def largest_batch(config: OneRecV2Config, context_limits: Sequence[int], limits: Limits, max_beam_width: int) -> Arrays:
    """A run that fills every limit: as many requests, context tokens and beams as it may have.

    One request has the widest beam; the others share what is left of the rows.
    """
    size = limits.max_batch
    rest = (limits.max_rows - max_beam_width) // max(size - 1, 1)
    widths = np.full((size, config.levels), max(1, min(max_beam_width, rest)), np.int32)
    widths[0] = max_beam_width if rest >= 1 or size == 1 else limits.max_rows - (size - 1)
    # Requests from the first on have a full context until the run's is full; static tokens everybody has.
    room = limits.max_context_tokens - sum(size for p in config.pathways if p.kind == "static")
    counts = []
    for pathway, limit in zip(config.pathways, context_limits, strict=True):
        if pathway.kind == "static":
            counts.append(np.ones(size, np.int64))
            continue
        before = np.minimum(np.arange(size + 1) * limit, max(room, 0))
        counts.append(np.diff(before))
        room -= int(before[-1])
    return _batch(config, counts, widths)


def uniform_batch(config: OneRecV2Config, context_limits: Sequence[int], size: int, widths: Sequence[int]) -> Arrays:
    """A run of `size` requests of full contexts and equal beam widths, one per level."""
    counts = [np.full(size, limit, np.int64) for limit in context_limits]
    return _batch(config, counts, np.tile(np.asarray(widths, np.int32), (size, 1)))


def _batch(config: OneRecV2Config, counts: Sequence[npt.NDArray[np.int64]], widths: npt.NDArray[np.int32]) -> Arrays:
    """A run with `counts` [pathway][request] context tokens."""
    size = len(widths)
    offsets = offsets_of(np.sum(counts, axis=0))
    out: Arrays = {
        "context_offsets": offsets.astype(np.int32),
        "widths": widths,
        "constrained": np.ones(size, np.uint8),
        "excluded": np.empty(0, np.int32),
        "excluded_offsets": np.zeros(size + 1, np.int32),
    }
    place = offsets[:-1]
    for pathway, count in zip(config.pathways, counts, strict=True):
        tokens = int(count.sum())
        if pathway.kind == "items":
            out[f"{pathway.name}.codes"] = np.zeros((tokens, config.levels), np.int32)
        out[f"{pathway.name}.positions"] = np.zeros(tokens, np.int32)
        out[f"{pathway.name}.rows"] = ranges(place, count).astype(np.int32)
        out[f"{pathway.name}.categorical"] = np.zeros((tokens, len(pathway.categorical_fields)), np.int32)
        out[f"{pathway.name}.dense"] = np.zeros((tokens, sum(f.dim for f in pathway.dense_fields)), np.float32)
        place = place + count
    return out


def parts(plan: Mapping[str, int], catalogue: Catalogue, trie: TrieIndex) -> dict[str, int]:
    """A core's plan as bytes by purpose that add up, with what this side holds of the catalogue."""
    out = {name: int(size) for name, size in plan.items() if name not in _WHOLES}
    arrays = (catalogue.item_ids, catalogue.semantic_ids, trie.order, trie.position, trie.leaf_items)
    out["catalogue"] += sum(array.nbytes for array in arrays)
    in_arena = sum(size for name, size in out.items() if name not in ("weights", "catalogue", "pinned"))
    out["padding"] = int(plan["arena"]) - in_arena
    return out
