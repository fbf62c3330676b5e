"""From a batch as callers write it to the packed arrays the engine runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from onerec_engine._arrays import Ints, offsets_of, ranges, sizes_of
from onerec_engine._columns import HISTORY, Columns, Ragged, Schema, Settings, check_columns
from onerec_engine._read_arrays import read_arrays
from onerec_engine._read_requests import read_requests
from onerec_engine._trie_index import TrieIndex
from onerec_engine.catalogue import Catalogue
from onerec_engine.config import OneRecV2Config
from onerec_engine.pathway import Pathway
from onerec_engine.request import Request

__all__ = ["Packed", "Tokens", "context_limits", "pack", "read_batch"]

Arrays = dict[str, npt.NDArray[Any]]

_EVERYTHING: Any = slice(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The context tokens of one pathway, request by request, oldest first.

    Attributes:
        name: the pathway's.
        offsets: int64 [B + 1]: request b has the tokens [offsets[b], offsets[b + 1]).
        codes: int32 [T, levels]; None for a static pathway.
        positions: int32 [T], rows of the position table.
        categorical: int32 [T, categorical fields].
        dense: float32 [T, dense columns].
    """

    name: str
    offsets: Ints
    codes: npt.NDArray[np.int32] | None
    positions: npt.NDArray[np.int32]
    categorical: npt.NDArray[np.int32]
    dense: npt.NDArray[np.float32]

    def arrays(self, take: Any) -> Arrays:
        """What `_C.Core.run` takes of the tokens `take`, an index of arrays, besides their rows."""
        out: Arrays = {
            f"{self.name}.positions": self.positions[take],
            f"{self.name}.categorical": self.categorical[take],
            f"{self.name}.dense": self.dense[take],
        }
        if self.codes is not None:
            out[f"{self.name}.codes"] = self.codes[take]
        return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """B requests, ready to be cut into runs.

    Attributes:
        size: B.
        tokens: per pathway.
        widths: int32 [B, levels], no wider than the search can use.
        constrained: uint8 [B].
        excluded: int32, trie positions, ascending and distinct within a request.
        excluded_offsets: int64 [B + 1].
        context_sizes: int64 [B], tokens of all pathways.
        unknown: int64 [B], item ids the catalogue does not have.
        truncated: int64 [B], known item ids that no pathway had room for.
    """

    size: int
    tokens: tuple[Tokens, ...]
    widths: npt.NDArray[np.int32]
    constrained: npt.NDArray[np.uint8]
    excluded: npt.NDArray[np.int32]
    excluded_offsets: Ints
    context_sizes: Ints
    unknown: Ints
    truncated: Ints

    @property
    def excluded_sizes(self) -> Ints:
        """How many positions each request excludes, int64 [B]."""
        return sizes_of(self.excluded_offsets)

    def arrays(self, chosen: Ints) -> Arrays:
        """What `_C.Core.run` takes for the requests `chosen`, int64 [b], in that order."""
        if chosen.size == self.size and (chosen == np.arange(self.size)).all():
            return self._all_arrays()
        context_offsets = offsets_of(self.context_sizes[chosen])
        out: Arrays = {
            "context_offsets": context_offsets.astype(np.int32),
            "widths": np.ascontiguousarray(self.widths[chosen]),
            "constrained": self.constrained[chosen],
        }
        place = context_offsets[:-1]
        for tokens in self.tokens:
            starts = tokens.offsets[chosen]
            sizes = tokens.offsets[chosen + 1] - starts
            out |= tokens.arrays(ranges(starts, sizes))
            out[f"{tokens.name}.rows"] = ranges(place, sizes).astype(np.int32)
            place = place + sizes
        starts = self.excluded_offsets[chosen]
        sizes = self.excluded_offsets[chosen + 1] - starts
        out["excluded"] = self.excluded[ranges(starts, sizes)]
        out["excluded_offsets"] = offsets_of(sizes).astype(np.int32)
        return out

    def _all_arrays(self) -> Arrays:
        """The same for all requests in their order, of which nothing need be copied."""
        context_offsets = offsets_of(self.context_sizes)
        out: Arrays = {
            "context_offsets": context_offsets.astype(np.int32),
            "widths": self.widths,
            "constrained": self.constrained,
            "excluded": self.excluded,
            "excluded_offsets": self.excluded_offsets.astype(np.int32),
        }
        place = context_offsets[:-1]
        for tokens in self.tokens:
            out |= tokens.arrays(_EVERYTHING)
            sizes = sizes_of(tokens.offsets)
            # A pathway alone fills the contexts.
            rows = np.arange(context_offsets[-1]) if len(self.tokens) == 1 else ranges(place, sizes)
            out[f"{tokens.name}.rows"] = rows.astype(np.int32)
            place = place + sizes
        return out


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


def pack(
    columns: Columns, *, config: OneRecV2Config, catalogue: Catalogue, trie: TrieIndex, limits: Sequence[int]
) -> Packed:
    """Looks items up, keeps the newest tokens of each pathway, and lays everything out for the engine.

    Args:
        columns: a checked batch.
        config: the model.
        catalogue: its items.
        trie: the same items in trie order.
        limits: tokens each pathway keeps, from `context_limits`.
    """
    known = {source: _known(ids, catalogue) for source, ids in columns.sources.items()}
    unknown = np.zeros(columns.size, np.int64)
    truncated = np.zeros(columns.size, np.int64)
    for source, found in known.items():
        if found.rows is not None:
            unknown += sizes_of(columns.sources[source].offsets) - sizes_of(found.items.offsets)
        room = [m for p, m in zip(config.pathways, limits, strict=True) if p.kind == "items" and p.source == source]
        if room:
            truncated += np.maximum(sizes_of(found.items.offsets) - max(room), 0)
    tokens = []
    for pathway, limit in zip(config.pathways, limits, strict=True):
        of = known[pathway.source] if pathway.kind == "items" else None
        tokens.append(_tokens(pathway, limit, of, columns, catalogue))
    excluded = _excluded(columns, known[HISTORY].items, catalogue, trie)
    sizes = [sizes_of(t.offsets) for t in tokens]
    return Packed(
        size=columns.size,
        tokens=tuple(tokens),
        widths=_useful_widths(columns, config, trie),
        constrained=columns.constrained.astype(np.uint8),
        excluded=excluded.values.astype(np.int32),
        excluded_offsets=excluded.offsets,
        context_sizes=reduce(np.add, sizes),
        unknown=unknown,
        truncated=truncated,
    )


@dataclass(frozen=True, slots=True)
class _Known:
    """The ids that the catalogue has: where they are in it, and which of the ids given they are (None: all)."""

    items: Ragged
    rows: Ints | None


def _known(ids: Ragged, catalogue: Catalogue) -> _Known:
    at = catalogue.find(ids.values)
    rows = np.flatnonzero(at >= 0)
    if rows.size == at.size:
        return _Known(Ragged(at, ids.offsets), None)
    return _Known(Ragged(at[rows], np.searchsorted(rows, ids.offsets)), rows)


def _tokens(pathway: Pathway, limit: int, known: _Known | None, columns: Columns, catalogue: Catalogue) -> Tokens:
    codes, take = None, None
    if known is None:
        offsets = np.arange(columns.size + 1)
        positions = np.zeros(columns.size, np.int32)
    else:
        sizes = sizes_of(known.items.offsets)
        kept = np.minimum(sizes, limit)
        offsets = offsets_of(kept)
        token = np.arange(offsets[-1], dtype=np.int32)
        if pathway.position_embedding == "recency":
            positions = np.repeat((offsets[1:] - 1).astype(np.int32), kept) - token
        else:
            positions = token - np.repeat(offsets[:-1].astype(np.int32), kept)
        items = known.items.values
        take = known.rows
        if offsets[-1] != items.size:
            chosen = ranges(known.items.offsets[1:] - kept, kept)
            items = items[chosen]
            take = chosen if take is None else take[chosen]
        codes = np.take(catalogue.semantic_ids, items, axis=0)
    total = int(offsets[-1])
    categorical = [columns.features[f"{pathway.name}.{f.name}"] for f in pathway.categorical_fields]
    dense = [columns.features[f"{pathway.name}.{f.name}"] for f in pathway.dense_fields]
    return Tokens(
        name=pathway.name,
        offsets=offsets,
        codes=codes,
        positions=positions,
        categorical=_side_by_side([c if take is None else c[take] for c in categorical], total, np.int32),
        dense=_side_by_side([d if take is None else d[take] for d in dense], total, np.float32),
    )


def _side_by_side(columns: list[npt.NDArray[Any]], rows: int, dtype: type[np.generic]) -> npt.NDArray[Any]:
    if not columns:
        return np.empty((rows, 0), dtype)
    return np.column_stack(columns).astype(dtype, order="C", copy=False)


def _excluded(columns: Columns, history: Ragged, catalogue: Catalogue, trie: TrieIndex) -> Ragged:
    """Trie positions to exclude, ascending and distinct within each request."""
    size, n = columns.size, len(catalogue)
    parts: list[tuple[Ragged, npt.NDArray[np.bool_] | None]] = []
    if columns.exclude.values.size:
        parts.append((_known(columns.exclude, catalogue).items, None))
    if columns.exclude_history.any():
        parts.append((history, columns.exclude_history))
    keys = []
    for items, flags in parts:
        owner = np.repeat(np.arange(size), sizes_of(items.offsets))
        key = owner * n + trie.position[items.values]
        keys.append(key if flags is None else key[flags[owner]])
    if not keys:
        return Ragged(np.empty(0, np.int64), np.zeros(size + 1, np.int64))
    key = np.unique(np.concatenate(keys))
    return Ragged(key % n, np.searchsorted(key, np.arange(size + 1) * n))


def _useful_widths(columns: Columns, config: OneRecV2Config, trie: TrieIndex) -> npt.NDArray[np.int32]:
    """Widths without beams that can never live: more than there are prefixes in the catalogue, or in the codebooks."""
    if columns.constrained.all():
        return np.minimum(columns.widths, trie.edges).astype(np.int32)
    free, reach = [], 1
    for size in config.codebook_sizes:
        reach = min(reach * size, 1 << 31)
        free.append(reach)
    most = np.where(columns.constrained[:, None], np.array(trie.edges), np.array(free))
    return np.minimum(columns.widths, most).astype(np.int32)
