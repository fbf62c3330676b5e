"""A dict of arrays as columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from onerec_engine._arrays import Ints, as_array, as_floats, as_ints
from onerec_engine._columns import Columns, Feature, Ragged, Schema, Settings, defaults
from onerec_engine._json import quote
from onerec_engine.config import CategoricalField

__all__ = ["read_arrays"]

_SETTINGS = ("beam_width", "num_results", "constrained", "exclude_history", "request_id", "exclude", "exclude.offsets")


def read_arrays(batch: Mapping[str, Any], schema: Schema, settings: Settings) -> Columns:
    """Reads a dict of arrays of B requests; values are checked by `check_columns`.

    Args:
        batch: ``item_ids`` [T] and ``offsets`` [B + 1], the histories; for every other source its ids under its name
            and ``source.offsets``; for every field ``pathway.field`` [T] or [T, dim], or [B] for a static pathway. And
            optionally ``beam_width`` [B] or [B, levels], ``num_results`` [B], ``constrained`` [B], ``exclude_history``
            [B], ``exclude`` with ``exclude.offsets``, and ``request_id``, a list of B.
        schema: the model's.
        settings: the call's.

    Raises:
        ValueError: for anything of a wrong name, kind or shape.
    """
    keys = schema.array_keys
    if unknown := [name for name in batch if name not in keys and name not in _SETTINGS]:
        raise ValueError(
            f"[batch] got unknown arrays {quote(unknown)}, want {list(keys)} and some of {list(_SETTINGS)}."
        )
    if missing := [name for name in keys if name not in batch]:
        raise ValueError(f"[batch] lacks the arrays {missing}. Add them; lists of items may be empty.")
    size = max(as_ints(batch["offsets"], "[batch] offsets").size - 1, 0)
    sources = {source: _ragged(batch, *pair, size) for source, pair in schema.arrays.items()}
    ids = batch.get("request_id")
    if ids is not None and len(ids) != size:
        raise ValueError(f"[batch] request_id: got {len(ids)} entries, want {size}.")
    default = defaults(size, settings)
    return Columns(
        size=size,
        sources=sources,
        features={f.key: _feature(batch[f.key], f, sources, size) for f in schema.features},
        exclude=_ragged(batch, "exclude", "exclude.offsets", size) if "exclude" in batch else default.exclude,
        widths=_widths(batch.get("beam_width"), default.widths),
        num_results=_counts(batch.get("num_results"), default.num_results),
        constrained=_flags(batch.get("constrained"), "constrained", default.constrained),
        exclude_history=_flags(batch.get("exclude_history"), "exclude_history", default.exclude_history),
        request_ids=ids,
    )


def _ragged(batch: Mapping[str, Any], name: str, offsets_name: str, size: int) -> Ragged:
    if offsets_name not in batch:
        raise ValueError(f"[batch] lacks the array {offsets_name!r} that says which of {name!r} a request has.")
    values = as_ints(batch[name], f"[batch] {name}")
    offsets = as_ints(batch[offsets_name], f"[batch] {offsets_name}")
    if values.ndim != 1:
        raise ValueError(f"[batch] {name}: got shape {list(values.shape)}, want one flat array for all requests.")
    if offsets.shape != (size + 1,):
        raise ValueError(f"[batch] {offsets_name}: got shape {list(offsets.shape)}, want [{size + 1}].")
    first, last = offsets.item(0), offsets.item(size)
    if first != 0 or last != values.size:
        got = f"{first} to {last}"
        raise ValueError(f"[batch] {offsets_name}: got {got}, want 0 to {values.size}, the length of {name}.")
    if size > 1 and (offsets[1:] < offsets[:-1]).any():
        b = int(np.flatnonzero(offsets[1:] < offsets[:-1])[0])
        raise ValueError(f"[batch] request {b}: {offsets_name} falls from {offsets[b]} to {offsets[b + 1]}.")
    return Ragged(values, offsets)


def _feature(value: Any, feature: Feature, sources: dict[str, Ragged], size: int) -> npt.NDArray[Any]:
    rows = size if feature.source is None else sources[feature.source].values.size
    what = f"[batch] {feature.key}"
    if isinstance(feature.field, CategoricalField):
        ids = as_ints(value, what)
        _want_shape(ids, what, (rows,))
        return ids
    numbers = as_floats(value, what)
    if feature.field.dim == 1 and numbers.shape == (rows,):
        return numbers[:, None]
    _want_shape(numbers, what, (rows, feature.field.dim))
    return numbers


def _want_shape(array: npt.NDArray[Any], what: str, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{what}: got shape {list(array.shape)}, want {list(shape)}.")


def _widths(value: Any, default: Ints) -> Ints:
    if value is None:
        return default
    widths = as_ints(value, "[batch] beam_width")
    if widths.shape not in (default.shape[:1], default.shape):
        shapes = f"{list(default.shape[:1])} or {list(default.shape)}"
        raise ValueError(f"[batch] beam_width: got shape {list(widths.shape)}, want {shapes}.")
    out = np.empty(default.shape, np.int64)
    out[:] = widths if widths.ndim == 2 else widths[:, None]
    return out


def _counts(value: Any, default: Ints) -> Ints:
    if value is None:
        return default
    counts = as_ints(value, "[batch] num_results")
    _want_shape(counts, "[batch] num_results", default.shape)
    return np.maximum(counts, 0)


def _flags(value: Any, name: str, default: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    if value is None:
        return default
    flags = as_array(value, f"[batch] {name}")
    _want_shape(flags, f"[batch] {name}", default.shape)
    if flags.dtype.kind not in "biu":
        raise ValueError(f"[batch] {name}: got {flags.dtype}, want true or false per request.")
    return flags.astype(np.bool_)
