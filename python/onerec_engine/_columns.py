"""A batch as one ragged array per kind of value: what callers' batches are turned into first."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from onerec_engine._arrays import Ints, as_ints
from onerec_engine._json import quote
from onerec_engine.config import CategoricalField, DenseField, OneRecV2Config

__all__ = [
    "HISTORY",
    "UNSET",
    "Columns",
    "Defaults",
    "Feature",
    "Ragged",
    "Schema",
    "Settings",
    "check_columns",
    "defaults",
    "read_count",
    "read_widths",
]

HISTORY = "history"
UNSET = -1
"""In `Columns.num_results`: as many as the settings say."""


class Ragged(NamedTuple):
    """Request b has values[offsets[b] : offsets[b + 1]]; both int64, offsets [B + 1]."""

    values: Ints
    offsets: Ints


@dataclass(frozen=True, slots=True)
class Feature:
    """A field of a pathway as callers name it.

    Attributes:
        key: ``pathway.field``.
        source: the item list it is aligned with; None for one value per request.
        field: the field.
    """

    key: str
    source: str | None
    field: CategoricalField | DenseField


@dataclass(frozen=True, slots=True)
class Schema:
    """What a model wants to know about a request.

    Attributes:
        levels: semantic-id levels.
        sources: names of the item lists, ``history`` first.
        features: the pathways' fields.
        arrays: how a dict of arrays names each source's ids and their offsets.
        array_keys: every name that such a dict must have.
    """

    levels: int
    sources: tuple[str, ...]
    features: tuple[Feature, ...]
    arrays: dict[str, tuple[str, str]]
    array_keys: tuple[str, ...]

    @staticmethod
    def of(config: OneRecV2Config) -> Schema:
        """The schema of a model."""
        named = [p.source for p in config.pathways if p.kind == "items"]
        features = [
            Feature(f"{p.name}.{field.name}", p.source if p.kind == "items" else None, field)
            for p in config.pathways
            for field in p.fields
        ]
        sources = tuple(dict.fromkeys([HISTORY, *named]))
        arrays = {HISTORY: ("item_ids", "offsets")} | {s: (s, f"{s}.offsets") for s in sources[1:]}
        array_keys = (*(name for pair in arrays.values() for name in pair), *(f.key for f in features))
        return Schema(config.levels, sources, tuple(features), arrays, array_keys)

    @property
    def keys(self) -> list[str]:
        """The names a request's features may have."""
        return [*self.sources[1:], *(feature.key for feature in self.features)]


class Settings(NamedTuple):
    """What holds for a request that does not say otherwise.

    Attributes:
        widths: beams kept after each level.
        num_results: items per request; None for `default_results` or as many as the last width, if that is less.
        default_results: see there.
        constrained: search the catalogue's items alone.
        exclude_history: exclude the history's items.
        max_beam_width: the largest width allowed.
    """

    widths: tuple[int, ...]
    num_results: int | None
    default_results: int
    constrained: bool
    exclude_history: bool
    max_beam_width: int

    def changed(self, *, beam_width: Any, num_results: Any, constrained: bool, exclude_history: bool) -> Settings:
        """These settings with a call's own; its width and number of results may be None.

        Raises:
            ValueError: for a width or number out of range.
        """
        widths, limit = self.widths, self.max_beam_width
        if beam_width is not None:
            widths = read_widths(beam_width, len(widths), "[engine] beam_width")
        if not 1 <= min(widths) <= max(widths) <= limit:
            raise ValueError(
                f"[engine] got beam_width {list(widths)}, want 1 to {limit} per level. "
                "Raise max_beam_width when the engine is made for more."
            )
        return Settings(
            widths=widths,
            num_results=None if num_results is None else read_count(num_results, "[engine] num_results"),
            default_results=self.default_results,
            constrained=bool(constrained),
            exclude_history=bool(exclude_history),
            max_beam_width=limit,
        )


class Columns(NamedTuple):
    """A batch of B requests.

    Attributes:
        size: B.
        sources: item ids by source.
        features: by key: int64 [T] or float32 [T, dim], T the number of its source's ids, or B without one.
        exclude: item ids.
        widths: int64 [B, levels].
        num_results: int64 [B].
        constrained: bool [B].
        exclude_history: bool [B].
        request_ids: one per request, or None.
    """

    size: int
    sources: dict[str, Ragged]
    features: dict[str, npt.NDArray[Any]]
    exclude: Ragged
    widths: Ints
    num_results: Ints
    constrained: npt.NDArray[np.bool_]
    exclude_history: npt.NDArray[np.bool_]
    request_ids: Sequence[Any] | None


class Defaults(NamedTuple):
    """The fields of `Columns` of requests that set nothing. Arrays are read-only.

    Attributes:
        exclude: no item ids.
        widths: int64 [B, levels].
        num_results: int64 [B], all `UNSET`.
        constrained: bool [B].
        exclude_history: bool [B].
    """

    exclude: Ragged
    widths: Ints
    num_results: Ints
    constrained: npt.NDArray[np.bool_]
    exclude_history: npt.NDArray[np.bool_]


def defaults(size: int, settings: Settings) -> Defaults:
    """What holds for `size` requests. Of few, it is kept: made anew, it takes as long as reading them."""
    return _kept_defaults(size, settings) if size <= 64 else _make_defaults(size, settings)


def _make_defaults(size: int, settings: Settings) -> Defaults:
    found = Defaults(
        exclude=Ragged(np.empty(0, np.int64), np.zeros(size + 1, np.int64)),
        widths=np.tile(np.array(settings.widths, np.int64), (size, 1)),
        num_results=np.full(size, UNSET, np.int64),
        constrained=np.full(size, settings.constrained, np.bool_),
        exclude_history=np.full(size, settings.exclude_history, np.bool_),
    )
    for array in (*found.exclude, *found[1:]):
        array.flags.writeable = False
    return found


_kept_defaults = lru_cache(maxsize=64)(_make_defaults)


def read_widths(value: Any, levels: int, what: str) -> tuple[int, ...]:
    """Beams kept after each level, from one number or one per level.

    Raises:
        ValueError: for anything else.
    """
    try:
        # Beyond int64 it would not survive until `check_columns`.
        return (min(max(operator.index(value), -1), 1 << 32),) * levels
    except TypeError:
        widths = as_ints(value, what)
    if widths.shape != (levels,):
        raise ValueError(f"{what}: got shape {list(widths.shape)}, want an integer or one per level [{levels}].")
    return tuple(widths.tolist())


def read_count(value: Any, what: str) -> int:
    """A number of results; what is not positive becomes 0, which `check_columns` finds.

    Raises:
        ValueError: if it is no integer.
    """
    try:
        count = operator.index(value)
    except TypeError:
        raise ValueError(f"{what}: got {quote(value)}, want an integer.") from None
    # Beyond int64, or taken for UNSET, it would not survive until it is found wrong.
    return min(max(count, 0), 1 << 32)


def check_columns(columns: Columns, schema: Schema, settings: Settings) -> Columns:
    """Checks every value's range and fills in the numbers of results that are `UNSET`.

    Raises:
        ValueError: naming the first request at fault.
    """
    from onerec_engine._C import check_settings

    widths, limit = columns.widths, settings.max_beam_width
    call = UNSET if settings.num_results is None else settings.num_results
    results, wide, many = check_settings(widths, columns.num_results, limit, call, settings.default_results)
    if wide >= 0:
        raise ValueError(
            f"[batch] request {wide}: got beam_width {widths[wide].tolist()}, want 1 to {limit} per level. "
            "Raise max_beam_width when the engine is made for more."
        )
    if many >= 0:
        raise ValueError(
            f"[batch] request {many}: got num_results {results[many]}, want 1 to {widths[many, -1]}, its last beam "
            "width. Ask for fewer items or search with wider beams."
        )
    for feature in schema.features:
        _check_feature(feature, columns)
    return columns._replace(num_results=results)


def _check_feature(feature: Feature, columns: Columns) -> None:
    values, field = columns.features[feature.key], feature.field
    if values.size == 0:
        return
    if isinstance(field, CategoricalField):
        if values.min() >= 0 and values.max() < field.num_embeddings:
            return
        bad = (values < 0) | (values >= field.num_embeddings)
        want = f"an id in [0, {field.num_embeddings})"
    else:
        # One pass: a sum is finite only if every value is; its overflow costs a second look.
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(values.sum()):
                return
        bad = ~np.isfinite(values).all(axis=1)
        want = "finite numbers that float32 can hold"
    rows = np.flatnonzero(bad)
    if rows.size:
        row = int(rows[0])
        b = row
        if feature.source is not None:
            b = int(np.searchsorted(columns.sources[feature.source].offsets, row, side="right")) - 1
        raise ValueError(f"[batch] request {b}: {feature.key}: got {values[row].tolist()}, want {want}.")
