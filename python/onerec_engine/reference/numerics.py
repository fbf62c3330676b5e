"""PyTorch's own arithmetic behind the model's operations; `emulation` has the rounding policies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ContextKV", "Modules", "Native", "RMSNorm", "heads"]

M = TypeVar("M", bound=nn.Module)


class Modules(nn.ModuleList, Generic[M]):
    """A module list whose elements have a known type."""

    def __iter__(self) -> Iterator[M]:
        """The modules in order."""
        return cast("Iterator[M]", super().__iter__())

    def at(self, index: int) -> M:
        """One module."""
        return cast("M", self[index])


def heads(x: Tensor, width: int) -> Tensor:
    """Splits the last axis into heads: [..., n * width] -> [..., n, width]."""
    return x.view(*x.shape[:-1], x.shape[-1] // width, width)


class RMSNorm(nn.Module):
    """Root-mean-square norm with a gain: y = x / sqrt(mean(x^2) + eps) * gamma."""

    def __init__(self, size: int, eps: float) -> None:
        """Makes a norm over the last axis of `size` elements with a gain of ones."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps


@dataclass(frozen=True, slots=True)
class ContextKV:
    """Context keys and values of all requests, padded to the longest.

    Attributes:
        keys: per group j < L_kv, [B, G_kv, N, d_head].
        values: the same; the very same tensors with S_kv = 1.
        mask: bool [B, N], True where a token stands, or None if all do.
        present: bool [B], False for requests without a token, or None if all have one.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor | None
    present: Tensor | None

    @property
    def requests(self) -> int:
        """Number of requests [B]."""
        return int(self.keys[0].shape[0])


class Native:
    """The operations in the weights' dtype (or under autocast), at PyTorch's natural speed and rounding.

    Attributes:
        exact: whether ties of top-k selections must resolve to the smaller index.
        step: the decode step being computed.
    """

    exact: bool = False
    step: int = 0

    def store(self, x: Tensor) -> Tensor:
        """Rounds to the activation type."""
        return x

    def table(self, weight: Tensor) -> Tensor:
        """A weight of an embedding, position table, context linear, router or head as it is stored."""
        return weight

    def norm(self, x: Tensor, norm: RMSNorm) -> Tensor:
        """RMSNorm over the last axis, not yet stored."""
        return functional.rms_norm(x, norm.weight.shape, norm.weight.to(x.dtype), norm.eps)

    def linear(self, name: str, x: Tensor, layers: Sequence[nn.Linear]) -> list[Tensor]:
        """Block linears that share an input: x [..., K] -> one [..., N_i] each, bias added, not yet stored.

        Args:
            name: checkpoint-like name of the fused group.
            x: the input.
            layers: the linears.
        """
        return [functional.linear(x, layer.weight, layer.bias) for layer in layers]

    def plain_linear(self, name: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """A linear that is never quantised (context, router, head): [..., K] -> [..., N], not yet stored.

        Args:
            name: its checkpoint name without ``.weight``.
            x: the input.
            weight: [N, K].
            bias: [N] or None.
        """
        return functional.linear(x, weight, bias)

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        """silu(gate) * up, not yet stored."""
        return functional.silu(gate) * up

    def cross_attention(self, q: Tensor, kv: ContextKV, group: int, scale: float) -> Tensor:
        """Attention of every row to its request's context tokens.

        Args:
            q: [B, R, H, d_head].
            kv: the context.
            group: which of the L_kv key/value groups.
            scale: softmax scale.

        Returns:
            [B, R, H * d_head]; zero for requests without tokens.
        """
        keys, values = kv.keys[group], kv.values[group]
        batch, rows, heads, width = q.shape
        groups = keys.shape[1]
        # Query heads of one key/value head stand along the row axis, so keys and values are never repeated.
        q = q.view(batch, rows, groups, heads // groups, width).permute(0, 2, 3, 1, 4)
        q = q.reshape(batch, groups, heads // groups * rows, width)
        mask = None if kv.mask is None else kv.mask[:, None, None, :]
        out = functional.scaled_dot_product_attention(q, keys.to(q.dtype), values.to(q.dtype), mask, scale=scale)
        out = out.view(batch, groups, heads // groups, rows, width).permute(0, 3, 1, 2, 4)
        out = out.reshape(batch, rows, heads * width)
        return out if kv.present is None else out * kv.present[:, None, None].to(out.dtype)

    def causal_attention(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Self-attention of whole rows: q [B, T, H, d_head], k and v [B, T, G, d_head] -> [B, T, H * d_head]."""
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        repeat = q.shape[1] // k.shape[1]
        if repeat > 1:
            k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        return out.transpose(1, 2).flatten(2)

    def step_attention(self, q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], scale: float) -> Tensor:
        """Self-attention of one decode step over at most `levels` keys a row.

        Args:
            q: [R, H, d_head].
            keys: per step up to this one, [R, G, d_head]: the row's ancestors' and its own.
            values: the same.
            scale: softmax scale.

        Returns:
            [R, H * d_head].
        """
        rows, heads, width = q.shape
        groups = keys[0].shape[1]
        grouped = q.view(rows, groups, heads // groups, width)
        scores = torch.stack([(grouped * k.unsqueeze(2)).sum(-1) for k in keys], -1)
        p = torch.softmax(scores.float() * scale, -1).to(q.dtype)
        out = p[..., 0, None] * values[0].unsqueeze(2)
        for s in range(1, len(values)):
            out = torch.addcmul(out, p[..., s, None], values[s].unsqueeze(2))
        return out.reshape(rows, heads * width)
