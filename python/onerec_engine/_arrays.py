"""What callers hand over (lists, NumPy, torch, anything with DLPack) as NumPy arrays of the types wanted."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Arrays", "Ints", "as_array", "as_floats", "as_ints", "offsets_of", "ranges", "sizes_of"]

Arrays = dict[str, npt.NDArray[Any]]
Ints = npt.NDArray[np.int64]
_INT64 = np.dtype(np.int64)
_INT64_MAX = np.iinfo(np.int64).max


def as_array(value: Any, what: str) -> npt.NDArray[Any]:
    """A view of `value`'s memory where it has one (DLPack, buffer or array interface), else a copy.

    Args:
        value: an array, a tensor on the CPU, or nested lists of numbers.
        what: its name in an error.

    Raises:
        ValueError: if it cannot be read as an array of one dtype and shape.
    """
    if isinstance(value, np.ndarray):
        return value
    try:
        if hasattr(value, "__dlpack__") and not isinstance(value, np.generic):
            return np.from_dlpack(value)
        return np.asarray(value)
    except Exception as error:  # whatever the other library raises: BufferError, RuntimeError, TypeError, ...
        reason = " ".join(str(error).split())
        raise ValueError(f"{what}: got {type(value).__name__}, want an array on the CPU ({reason}).") from None


def as_ints(value: Any, what: str) -> Ints:
    """`value` as int64, of any shape.

    Raises:
        ValueError: if it holds anything but integers of 64 bits.
    """
    array = as_array(value, what)
    if array.dtype == _INT64:
        return array
    if array.size == 0 and array.dtype == np.float64:  # an empty list
        return array.astype(np.int64)
    if array.dtype.kind not in "iu" or (array.dtype == np.uint64 and array.max(initial=0) > _INT64_MAX):
        raise ValueError(f"{what}: got {_described(array)}, want 64-bit integers.")
    return array.astype(np.int64)


def as_floats(value: Any, what: str) -> npt.NDArray[np.float32]:
    """`value` as float32, of any shape; what is beyond float32 becomes infinite.

    Raises:
        ValueError: if it holds anything but real numbers.
    """
    array = as_array(value, what)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{what}: got {_described(array)}, want real numbers.")
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


def offsets_of(sizes: npt.ArrayLike) -> Ints:
    """[0, s0, s0 + s1, ...], int64 [n + 1]."""
    counts = np.asarray(sizes, np.int64)
    out = np.zeros(counts.size + 1, np.int64)
    counts.cumsum(out=out[1:])
    return out


def sizes_of(offsets: Ints) -> Ints:
    """The inverse of `offsets_of`."""
    return offsets[1:] - offsets[:-1]


def ranges(starts: Ints, sizes: Ints) -> Ints:
    """The integers [starts[i], starts[i] + sizes[i]) of each i, one after another."""
    if starts.size == 1:
        return np.arange(starts[0], starts[0] + sizes[0])
    offsets = offsets_of(sizes)
    return np.repeat(starts - offsets[:-1], sizes) + np.arange(offsets[-1])


def _described(array: npt.NDArray[Any]) -> str:
    return f"{array.dtype} {list(array.shape)}"
