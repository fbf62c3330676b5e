"""What docs/numerics.md rounds, point by point, on float64 values that are otherwise exact."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "BF16_POINTS",
    "EXTRA_POINTS",
    "ROUNDED_POINTS",
    "Normed",
    "Numbers",
    "code_scale",
    "dequantized",
    "e4m3",
    "quantized_weight",
    "round_bf16",
]

Array = npt.NDArray[np.float64]
Precision = Literal["exact", "bf16", "fp8"]

ROUNDED_POINTS = (
    "plain_weight",
    "table",
    "residual",
    "router_input",
    "head_input",
    "qkv",
    "qk_norm",
    "context_input",
    "context_hidden",
    "context_projection",
    "context_row",
    "context_kv",
    "cross_p",
    "attended",
    "gate_up",
    "expert_output",
    "shared_output",
    "decoder_input",
)
"""Rounded to BF16 in ``bf16`` and ``fp8``. In ``bf16`` alone: block_weight, block_input and hidden."""

EXTRA_POINTS = ("vector", "branch", "scores", "self_p", "denominator", "router_logits", "expert_sum", "logits")
"""Where somebody may think that a rounding belongs; there is none."""

BF16_POINTS = ("block_weight", "block_input", "hidden")
BLOCK = 128


def round_bf16(x: Array) -> Array:
    """The nearest BF16 value, ties to the even mantissa, by arithmetic: 8 significant bits."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.rint(np.ldexp(mantissa, 8)), exponent - 8)


_CODES = np.arange(127)
_VALUES = np.where(_CODES < 8, _CODES * 2.0**-9, (1 + _CODES % 8 / 8) * 2.0 ** (_CODES // 8 - 7.0))


def e4m3(x: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """E4M3 codes by a search in the table of all values."""
    size = np.minimum(np.abs(x).astype(np.float64), 448.0)
    above = np.searchsorted(_VALUES, size)
    below = np.maximum(above - 1, 0)
    to_above, to_below = _VALUES[above] - size, size - _VALUES[below]
    up = (to_above < to_below) | ((to_above == to_below) & (above % 2 == 0))
    return (np.where(up, above, below) + np.where(np.signbit(x), 128, 0)).astype(np.uint8)


def dequantized(codes: npt.NDArray[np.uint8]) -> Array:
    """The codes' values."""
    return np.where(codes >= 128, -1.0, 1.0) * _VALUES[codes % 128]


def quantized(x: npt.NDArray[np.float32], axis: int | tuple[int, ...]) -> tuple[Array, Array]:
    """E4M3 values and the scale of each group along `axis`, in the FP32 arithmetic of docs/numerics.md."""
    scale = np.maximum(np.abs(x).max(axis, keepdims=True) / np.float32(448), np.float32(1e-12))
    return dequantized(e4m3(x * (np.float32(1) / scale))), scale.astype(np.float64)


def code_scale(x: Array, gamma: Array, eps: float) -> float:
    """The scale of the codes per row of an RMSNorm: a power of two over the row's root mean square."""
    mean_square = (x * x).mean()
    _, exponent = np.frexp(max(mean_square, 2.0**-97))  # what is smaller has the power of this
    mantissa, gamma_exponent = np.frexp(np.clip(np.abs(gamma).max(), 2.0**-40, 2.0**40))
    above = gamma_exponent - (mantissa == 0.5)
    return float(np.ldexp(0.5, np.clip(exponent // 2, -48, 48) + above) / np.sqrt(mean_square + eps))


class Normed(NamedTuple):
    """A row that a norm made for block linears."""

    values: Array
    scale: float
    """`code_scale` of what the norm read."""


class Numbers:
    """A column of the table in docs/numerics.md: which values are rounded, and how block linears multiply."""

    def __init__(self, precision: Precision, *, experts: str = "block", flipped: Collection[str] = ()) -> None:
        """Makes the column `precision`.

        Args:
            precision: ``exact`` rounds nothing.
            experts: ``block`` or ``channel``, scheme of the routed experts in ``fp8``.
            flipped: points at which to round where the table does not, and not to round where it does.
        """
        self.fp8 = precision == "fp8"
        self.experts = experts
        points = {"exact": (), "fp8": ROUNDED_POINTS, "bf16": (*ROUNDED_POINTS, *BF16_POINTS)}[precision]
        self.rounded = frozenset(points) ^ frozenset(flipped)
        self._weights: dict[str, tuple[Array, Array]] = {}

    def round(self, point: str, x: Array) -> Array:
        """`x` as it is stored at a point."""
        return round_bf16(x) if point in self.rounded else x

    def block_linear(
        self, name: str, weight: Array, row: Array | Normed, *, point: str = "block_input", expert: bool = False
    ) -> Array:
        """A linear of a decoder block on one row, without its bias."""
        x = self.round(point, row.values if isinstance(row, Normed) else row)
        weight = self.round("block_weight", weight)
        if not self.fp8:
            return weight @ x
        by_block = expert and self.experts == "block"
        if name not in self._weights:
            self._weights[name] = quantized_weight(weight, by_block=by_block)
        values, scales = self._weights[name]
        if isinstance(row, Normed) and not by_block:
            return row.scale * scales[:, 0] * (values @ dequantized(e4m3((x / row.scale).astype(np.float32))))
        out = np.zeros(weight.shape[0])
        width = BLOCK if by_block else x.size
        for start in range(0, x.size, width):
            columns = slice(start, start + width)
            codes, scale = quantized(x[columns].astype(np.float32), 0)
            out += scale[0] * scales[:, start // width] * (values[:, columns] @ codes)
        return out


def quantized_weight(weight: Array, *, by_block: bool) -> tuple[Array, Array]:
    """E4M3 values [N, K], and scales [N, 1] or, by blocks of 128 x 128, [N, blocks]."""
    if not by_block:
        return quantized(weight.astype(np.float32), 1)
    values, scales = np.empty_like(weight), np.empty((weight.shape[0], -(-weight.shape[1] // BLOCK)))
    for top in range(0, weight.shape[0], BLOCK):
        for left in range(0, weight.shape[1], BLOCK):
            tile = slice(top, top + BLOCK), slice(left, left + BLOCK)
            values[tile], scale = quantized(weight[tile].astype(np.float32), (0, 1))
            scales[top : top + BLOCK, left // BLOCK] = scale
    return values, scales
