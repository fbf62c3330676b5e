"""Stored floating-point formats to float32, exactly."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["e4m3_values", "to_float32"]


def e4m3_values() -> npt.NDArray[np.float32]:
    """The values of all 256 E4M3 codes (OCP FP8, finite form): bias 7, subnormals of 2^-9, S.1111.111 is NaN."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    normal = np.ldexp(1.0 + mantissa / 8.0, exponent - 7)
    value = np.where(exponent == 0, mantissa * 2.0**-9, normal)
    value[(code & 127) == 127] = np.nan
    return np.where(code >= 128, -value, value).astype(np.float32)


def to_float32(
    raw: npt.NDArray[np.uint8],
    dtype: str,
    shape: tuple[int, ...],
    scales: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float32]:
    """A tensor's values, in memory of their own.

    Args:
        raw: its bytes, little-endian, uint8 [n].
        dtype: F32, F16, BF16 or F8_E4M3.
        shape: its shape.
        scales: of F8_E4M3: one per row, or one per block of 128 x 128.

    Raises:
        ValueError: for another dtype.
    """
    if dtype == "F32":
        return raw.view("<f4").reshape(shape).astype(np.float32)
    if dtype == "F16":
        return raw.view("<f2").reshape(shape).astype(np.float32)
    if dtype == "BF16":
        return (raw.view("<u2").reshape(shape).astype(np.uint32) << 16).view(np.float32)
    if dtype != "F8_E4M3":
        raise ValueError(f"[float32] got dtype {dtype}, want F32, F16, BF16 or F8_E4M3.")
    values = e4m3_values()[raw.reshape(shape)]
    if scales is None:
        return values
    if scales.ndim == 1:
        return values * scales[:, None]
    rows, columns = (np.arange(size) // 128 for size in shape)
    return values * scales[rows[:, None], columns[None, :]]
