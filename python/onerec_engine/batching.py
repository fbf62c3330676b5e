"""From a batch as callers write it to the packed arrays the engine runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from onerec_engine._columns import Columns, Schema, Settings, check_columns
from onerec_engine._read_arrays import read_arrays
from onerec_engine._read_requests import read_requests
from onerec_engine._trie_index import TrieIndex
from onerec_engine.config import OneRecV2Config
from onerec_engine.pathway import CategoricalField, Pathway
from onerec_engine.request import Request

if TYPE_CHECKING:
    from onerec_engine._C import PackedRequests, Packer

__all__ = ["context_limits", "make_packer", "pack", "read_batch"]

MAX_WIDTH = 1 << 31


def read_batch(batch: Iterable[Request] | Mapping[str, Any], schema: Schema, settings: Settings) -> Columns:
    """Reads and checks requests or a dict of arrays.

    Raises:
        ValueError: for anything that does not fit the model; names the request's index.
    """
    if isinstance(batch, Mapping):
        return check_columns(read_arrays(batch, schema, settings), schema, settings)
    return check_columns(read_requests(batch, schema, settings), schema, settings)


def context_limits(pathways: Sequence[Pathway], max_context: int) -> tuple[int, ...]:
    """How many tokens each pathway may keep so that a request has at most `max_context`.

    Static pathways keep theirs; the longest of the others give up tokens first.

    Raises:
        ValueError: if there is no room for one token of each pathway.
    """
    if max_context < len(pathways):
        raise ValueError(
            f"[engine] got max_context {max_context}, want at least {len(pathways)}: one token for each pathway."
        )
    if sum(p.max_tokens for p in pathways) <= max_context:
        return tuple(p.max_tokens for p in pathways)
    # The highest common ceiling that fits, then a token more for the first of those it cut.
    low, high = 1, max_context
    while low < high:
        middle = (low + high + 1) // 2
        fits = sum(min(p.max_tokens, middle) for p in pathways) <= max_context
        low, high = (middle, high) if fits else (low, middle - 1)
    spare = max_context - sum(min(p.max_tokens, low) for p in pathways)
    limits = []
    for p in pathways:
        extra = 1 if spare > 0 and p.max_tokens > low else 0
        spare -= extra
        limits.append(min(p.max_tokens, low) + extra)
    return tuple(limits)


def make_packer(config: OneRecV2Config, trie: TrieIndex, limits: Sequence[int]) -> Packer:
    """What turns batches of a model into runs.

    Args:
        config: the model.
        trie: its items.
        limits: tokens each pathway keeps, from `context_limits`.
    """
    from onerec_engine._C import Packer

    sources = Schema.of(config).sources
    pathways = [
        (
            pathway.name,
            sources.index(pathway.source) if pathway.kind == "items" else -1,
            limit,
            pathway.position_embedding,
            [0 if isinstance(field, CategoricalField) else field.dim for field in pathway.fields],
        )
        for pathway, limit in zip(config.pathways, limits, strict=True)
    ]
    # Wider beams never live: there are so many prefixes in the codebooks, and so many in the catalogue.
    free = [min(prod(config.codebook_sizes[: level + 1]), MAX_WIDTH) for level in range(config.levels)]
    return Packer(trie.items, pathways, len(sources), list(trie.edges), free)


def pack(columns: Columns, packer: Packer) -> PackedRequests:
    """Looks items up, and keeps the newest tokens of each pathway.

    Args:
        columns: a checked batch.
        packer: of its model.
    """
    return packer.pack(
        list(columns.sources.values()),
        columns.exclude,
        list(columns.features.values()),
        columns.widths,
        columns.constrained,
        columns.exclude_history,
    )
