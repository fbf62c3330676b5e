"""The context tokens of a batch of requests, packed per pathway."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["ContextInput", "PathwayInput"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PathwayInput:
    """The tokens of one pathway over all requests [T_p tokens].

    Attributes:
        codes: int64 [T_p, levels], semantic ids; [T_p, 0] for a ``static`` pathway.
        positions: int64 [T_p], rows of the position table (ignored without one).
        rows: int64 [T_p], destination rows in the packed context; each is used once over all pathways.
        categorical: int64 [T_p, n_cat], ids of the categorical fields in order.
        dense: float32 [T_p, n_dense], values of the dense fields in order.
    """

    codes: Tensor
    positions: Tensor
    rows: Tensor
    categorical: Tensor
    dense: Tensor

    @staticmethod
    def of_items(codes: Tensor, positions: Tensor, rows: Tensor) -> PathwayInput:
        """A pathway of items without further fields: `codes` [T_p, levels], `positions` and `rows` [T_p]."""
        tokens = codes.shape[0]
        return PathwayInput(
            codes=codes,
            positions=positions,
            rows=rows,
            categorical=torch.empty((tokens, 0), dtype=torch.int64, device=codes.device),
            dense=torch.empty((tokens, 0), dtype=torch.float32, device=codes.device),
        )

    def to(self, device: torch.device | str) -> PathwayInput:
        """The same tokens on `device`."""
        return PathwayInput(
            codes=self.codes.to(device),
            positions=self.positions.to(device),
            rows=self.rows.to(device),
            categorical=self.categorical.to(device),
            dense=self.dense.to(device),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextInput:
    """A batch's context: packed tokens, request b owning rows context_offsets[b] .. context_offsets[b + 1].

    Attributes:
        pathways: one entry per `OneRecV2Config.pathways`, in order.
        context_offsets: int64 [B + 1].
        max_tokens: the largest number of tokens of one request; -1 to read it from the offsets.
    """

    pathways: tuple[PathwayInput, ...]
    context_offsets: Tensor
    max_tokens: int = -1

    @property
    def requests(self) -> int:
        """Number of requests [B]."""
        return int(self.context_offsets.shape[0]) - 1

    @property
    def tokens(self) -> int:
        """Number of packed rows over all requests."""
        return sum(int(p.rows.shape[0]) for p in self.pathways)

    @property
    def longest(self) -> int:
        """The largest number of tokens of one request."""
        if self.max_tokens >= 0:
            return self.max_tokens
        lengths = self.context_offsets[1:] - self.context_offsets[:-1]
        return int(lengths.max()) if self.requests else 0

    def to(self, device: torch.device | str) -> ContextInput:
        """The same batch on `device`."""
        return ContextInput(
            pathways=tuple(p.to(device) for p in self.pathways),
            context_offsets=self.context_offsets.to(device),
            max_tokens=self.max_tokens,
        )
