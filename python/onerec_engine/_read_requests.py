"""A list of `Request` as columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from onerec_engine._arrays import Ints, as_floats, as_ints, sizes_of
from onerec_engine._columns import (
    HISTORY,
    Columns,
    Feature,
    Ragged,
    Schema,
    Settings,
    defaults,
    read_count,
    read_widths,
)
from onerec_engine._json import quote
from onerec_engine.config import CategoricalField
from onerec_engine.request import Request

__all__ = ["read_requests"]


def read_requests(batch: Iterable[Request], schema: Schema, settings: Settings) -> Columns:
    """Reads requests; values are checked by `check_columns`.

    Raises:
        ValueError: for anything of a wrong kind or length; names the request's index.
    """
    requests = _listed(batch)
    _check_names(requests, schema)
    size = len(requests)
    sources = {HISTORY: _ragged([_ids(r.history, b, HISTORY) for b, r in enumerate(requests)])}
    for source in schema.sources[1:]:
        sources[source] = _ragged([_ids(_get(r, source, b), b, source) for b, r in enumerate(requests)])
    default = defaults(size, settings)
    return Columns(
        size=size,
        sources=sources,
        features={f.key: _feature(requests, f, sources) for f in schema.features},
        exclude=_excluded(requests, default.exclude),
        widths=_widths(requests, schema, default.widths),
        num_results=_counts(requests, default.num_results),
        constrained=_flags([r.constrained for r in requests], default.constrained),
        exclude_history=_flags([r.exclude_history for r in requests], default.exclude_history),
        request_ids=[r.request_id for r in requests],
    )


def _listed(batch: Iterable[Request]) -> list[Request]:
    if isinstance(batch, (Request, Mapping, str, bytes)) or not isinstance(batch, Iterable):
        got = type(batch).__name__
        raise ValueError(f"[batch] got a {got}, want a list of requests or a dict of arrays. Put it into a list.")
    requests = list(batch)
    for b, request in enumerate(requests):
        if not isinstance(request, Request):
            raise ValueError(f"[batch] request {b}: got a {type(request).__name__}, want a Request.")
    return requests


def _check_names(requests: list[Request], schema: Schema) -> None:
    for b, request in enumerate(requests):
        if not request.features:
            continue
        keys = schema.keys
        if not isinstance(request.features, Mapping):
            got = type(request.features).__name__
            raise ValueError(f"[batch] request {b}: got features of type {got}, want a dict.")
        if unknown := [name for name in request.features if name not in keys]:
            raise ValueError(f"[batch] request {b}: got unknown features {quote(unknown)}, want some of {keys}.")


def _get(request: Request, key: str, b: int) -> Any:
    if key not in request.features:
        raise ValueError(f"[batch] request {b}: lacks the feature {key!r}. Add it; a list of items may be empty.")
    return request.features[key]


def _ids(value: Any, b: int, name: str) -> Ints:
    ids = as_ints(value, f"[batch] request {b}: {name}")
    if ids.ndim != 1:
        raise ValueError(f"[batch] request {b}: {name}: got shape {list(ids.shape)}, want a flat list of item ids.")
    return ids


def _ragged(parts: list[Ints]) -> Ragged:
    if not parts:
        return Ragged(np.empty(0, np.int64), np.zeros(1, np.int64))
    values = np.concatenate(parts) if len(parts) > 1 else parts[0]
    return Ragged(values, np.array([0, *accumulate([part.size for part in parts])], np.int64))


def _excluded(requests: list[Request], default: Ragged) -> Ragged:
    if all(type(r.exclude) is tuple and not r.exclude for r in requests):
        return default
    return _ragged([_ids(r.exclude, b, "exclude") for b, r in enumerate(requests)])


def _feature(requests: list[Request], feature: Feature, sources: dict[str, Ragged]) -> npt.NDArray[Any]:
    """All requests' values of one field, int64 [T] or float32 [T, dim]."""
    categorical = isinstance(feature.field, CategoricalField)
    dim = 1 if isinstance(feature.field, CategoricalField) else feature.field.dim
    aligned = feature.source is not None
    lengths = sizes_of(sources[feature.source].offsets).tolist() if feature.source else [1] * len(requests)
    parts: list[npt.NDArray[Any]] = [np.empty((0, dim), np.int64 if categorical else np.float32)]
    for b, (request, length) in enumerate(zip(requests, lengths, strict=True)):
        if length == 0 and feature.key not in request.features:
            continue
        what = f"[batch] request {b}: {feature.key}"
        given = _get(request, feature.key, b)
        values = as_ints(given, what) if categorical else as_floats(given, what)
        if not _fits(values.shape, length, dim, aligned=aligned):
            want = f"{length} values" if aligned else "one value"
            each = f" of {dim} numbers" if dim > 1 else ""
            raise ValueError(f"{what}: got shape {list(values.shape)}, want {want}{each}.")
        parts.append(values.reshape(length, dim))
    out = np.concatenate(parts)
    return out[:, 0] if categorical else out


def _fits(shape: tuple[int, ...], length: int, dim: int, *, aligned: bool) -> bool:
    """Whether values of that shape are `length` times `dim` numbers; axes of length 1 may be left out."""
    if shape == (length, dim) or (dim == 1 and shape == (length,)) or (length == 0 and shape == (0,)):
        return True
    return not aligned and (shape == (dim,) or (dim == 1 and shape == ()))


def _widths(requests: list[Request], schema: Schema, default: Ints) -> Ints:
    given = [b for b, r in enumerate(requests) if r.beam_width is not None]
    if not given:
        return default
    out = default.copy()
    for b in given:
        out[b] = read_widths(requests[b].beam_width, schema.levels, f"[batch] request {b}: beam_width")
    return out


def _counts(requests: list[Request], default: Ints) -> Ints:
    given = [b for b, r in enumerate(requests) if r.num_results is not None]
    if not given:
        return default
    out = default.copy()
    for b in given:
        out[b] = read_count(requests[b].num_results, f"[batch] request {b}: num_results")
    return out


def _flags(given: list[bool | None], default: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    if all(flag is None for flag in given):
        return default
    return np.array([d if flag is None else bool(flag) for flag, d in zip(given, default, strict=True)], np.bool_)
