"""Torch tensors as what ops take: matrices, operands with scales, beams; and as the tuples of addresses behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["BLOCK", "DTYPES", "Beams", "Operand", "beams_tuple", "matrix_tuple", "operand_tuple"]

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float8_e4m3fn: "float8_e4m3"}
BLOCK = 128


@dataclass(frozen=True)
class Operand:
    """Values [rows, columns], or E4M3 codes with scales: [rows] per row, [blocks, rows] per 128 columns."""

    values: Tensor
    scales: Tensor | None = None

    @staticmethod
    def empty(rows: int, columns: int, per: str, device: torch.device | str) -> Operand:
        """Room for codes with scales per "row" or "block"."""
        shape = (rows,) if per == "row" else (-(-columns // BLOCK), rows)
        return Operand(
            torch.empty(rows, columns, dtype=torch.float8_e4m3fn, device=device), torch.empty(shape, device=device)
        )

    def dequantized(self) -> Tensor:
        """The values that the codes stand for, float32."""
        if self.scales is None:
            return self.values.float()
        codes = self.values.float()
        if self.scales.ndim == 1:
            return codes * self.scales[:, None]
        return codes * self.scales.t().repeat_interleave(BLOCK, 1)[:, : codes.shape[1]]


@dataclass(frozen=True)
class Beams:
    """Beams before or after a level: scores [rows], states [rows], codes [rows, levels], ancestry per step [rows]."""

    scores: Tensor
    states: Tensor
    codes: Tensor
    ancestry: Sequence[Tensor] = ()

    @staticmethod
    def empty(rows: int, levels: int, steps: int, device: torch.device | str) -> Beams:
        """Room for beams with the ancestry of `steps` steps; dead at first."""

        def ints(*shape: int) -> Tensor:
            return torch.full(shape, -1, dtype=torch.int32, device=device)

        scores = torch.full((rows,), -torch.inf, device=device)
        return Beams(scores, ints(rows), ints(rows, levels), [ints(rows) for _ in range(steps)])


def matrix_tuple(x: Tensor) -> tuple[int, str, int, int, int]:
    """Rows whose elements lie side by side, [rows, columns]."""
    if x.ndim != 2 or x.stride(1) != 1:
        raise ValueError(f"[profiling] got a tensor of shape {tuple(x.shape)} and strides {x.stride()}, want rows.")
    return x.data_ptr(), DTYPES[x.dtype], x.shape[0], x.shape[1], x.stride(0)


def operand_tuple(x: Operand) -> tuple[tuple[int, str, int, int, int], str, int, int]:
    """With how its scales are shared, their address and stride."""
    if x.scales is None:
        return matrix_tuple(x.values), "none", 0, 0
    return matrix_tuple(x.values), "row" if x.scales.ndim == 1 else "block", x.scales.data_ptr(), x.scales.shape[-1]


def beams_tuple(beams: Beams) -> tuple[int, int, int, list[int]]:
    """The addresses of all arrays."""
    ancestry = [rows.data_ptr() for rows in beams.ancestry]
    return beams.scores.data_ptr(), beams.states.data_ptr(), beams.codes.data_ptr(), ancestry
