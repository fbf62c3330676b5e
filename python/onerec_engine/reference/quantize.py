"""E4M3 and BF16 rounding, and the dynamic quantisers built on it (docs/numerics.md)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "BLOCK",
    "E4M3_MAX",
    "dequantize_e4m3",
    "norm_code_scale",
    "quantize_block_128x128",
    "quantize_norm_rows",
    "quantize_row_blocks",
    "quantize_rows",
    "root_power",
    "round_bf16",
    "to_e4m3",
]

E4M3_MAX = 448.0
BLOCK = 128
_MIN_SCALE = 1e-12

_EXPONENT, _MANTISSA = 0xFF, 0x7FFFFF
_BIAS, _MANTISSA_BITS = 127, 23


def round_bf16(x: Tensor) -> Tensor:
    """Rounds FP32 values to BF16, nearest even, and returns them as FP32 (any shape)."""
    return x.to(torch.bfloat16).to(torch.float32)


def to_e4m3(x: Tensor) -> Tensor:
    """E4M3 codes of FP32 values: nearest even, saturating at +-448, NaN stays NaN.

    Args:
        x: float32, any shape.

    Returns:
        uint8 codes S.EEEE.MMM of the same shape.
    """
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).view(torch.uint8)


def dequantize_e4m3(codes: Tensor) -> Tensor:
    """The FP32 values of uint8 E4M3 codes, without any scale."""
    return codes.contiguous().view(torch.float8_e4m3fn).to(torch.float32)


def _scale(amax: Tensor) -> Tensor:
    return (amax / E4M3_MAX).clamp(min=_MIN_SCALE)


def _amax(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """The largest |x|; NaN if there is one."""
    return x.abs().amax(dim)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """One scale per row: per token for activations, per output channel for weights.

    Args:
        x: float32 [M, K].

    Returns:
        uint8 codes [M, K] and float32 scales [M], x ~ e4m3(codes) * scales[:, None].
    """
    if x.shape[1] == 0:
        return torch.empty_like(x, dtype=torch.uint8), _scale(x.new_zeros(x.shape[0]))
    scale = _scale(_amax(x, 1))
    return to_e4m3(x * (1.0 / scale)[:, None]), scale


def root_power(mean_square: Tensor) -> Tensor:
    """The power of two 2^r with mean_square / 4^r in [0.5, 2); r at least -48, at most 48 (docs/numerics.md).

    Args:
        mean_square: float32, not negative, any shape. Infinity and NaN give 2^48.

    Returns:
        float32 of the same shape.
    """
    exponent = ((mean_square.contiguous().view(torch.int32) >> _MANTISSA_BITS) & _EXPONENT) - _BIAS
    return _power_of_two(((exponent + 1) >> 1).clamp(-48, 48))


def norm_code_scale(gamma_magnitude: Tensor) -> Tensor:
    """Half of the smallest power of two that is at least `gamma_magnitude` (docs/numerics.md).

    Args:
        gamma_magnitude: float32, any shape: the largest |gamma| of a norm; taken into [2^-40, 2^40], NaN to 2^-40.

    Returns:
        float32 of the same shape.
    """
    least = torch.full_like(gamma_magnitude, 2.0**-40)
    bounded = torch.where(gamma_magnitude > least, gamma_magnitude.clamp(max=2.0**40), least)
    exponent = ((bounded.view(torch.int32) + _MANTISSA) >> _MANTISSA_BITS) - _BIAS
    return 0.5 * _power_of_two(exponent)


def _power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent as float32, int32 exponents from -126 to 127."""
    return ((exponent + _BIAS) << _MANTISSA_BITS).view(torch.float32)


def quantize_norm_rows(x: Tensor, gamma: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Codes per row of an RMSNorm, by scales that do not depend on the row's largest value (docs/numerics.md).

    Args:
        x: float32 [M, K], what is normed.
        gamma: float32 [K].
        eps: the norm's.

    Returns:
        uint8 codes [M, K] of x * gamma / s, where s is a power of two, and float32 scales [M], s / sqrt(mean(x^2) +
        eps); NaN for a row whose mean square is not finite.
    """
    mean_square = x.square().mean(1)
    power = root_power(mean_square) * norm_code_scale(gamma.abs().amax())
    scale = power * (1.0 / torch.sqrt(mean_square + eps))
    codes = to_e4m3((x * gamma) * (1.0 / power)[:, None])
    return codes, scale.masked_fill(~mean_square.isfinite(), torch.nan)


def quantize_row_blocks(x: Tensor) -> tuple[Tensor, Tensor]:
    """One scale per 128 consecutive columns of a row; the last block may be shorter.

    Args:
        x: float32 [M, K].

    Returns:
        uint8 codes [M, K] and float32 scales [M, ceil(K / 128)].
    """
    rows, columns = x.shape
    padded = functional.pad(x, (0, -columns % BLOCK))
    blocks = padded.view(rows, padded.shape[1] // BLOCK, BLOCK)
    scale = _scale(_amax(blocks, 2))
    codes = to_e4m3(blocks * (1.0 / scale)[:, :, None])
    return codes.reshape(padded.shape)[:, :columns].contiguous(), scale


def quantize_block_128x128(w: Tensor) -> tuple[Tensor, Tensor]:
    """One scale per 128 x 128 block of a weight; edge blocks may be smaller.

    Args:
        w: float32 [N, K].

    Returns:
        uint8 codes [N, K] and float32 scales [ceil(N / 128), ceil(K / 128)].
    """
    n, k = w.shape
    padded = functional.pad(w, (0, -k % BLOCK, 0, -n % BLOCK))
    blocks = padded.view(padded.shape[0] // BLOCK, BLOCK, padded.shape[1] // BLOCK, BLOCK)
    scale = _scale(_amax(blocks, (1, 3)))
    codes = to_e4m3(blocks * (1.0 / scale)[:, None, :, None])
    return codes.reshape(padded.shape)[:n, :k].contiguous(), scale
