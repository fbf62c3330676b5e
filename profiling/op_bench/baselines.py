"""PyTorch's ways to do what the engine's ops do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "attend",
    "compiled_quantize_rows",
    "grouped_mm",
    "mm_float",
    "quantize_blocks",
    "quantize_rows",
    "quantize_weight_blocks",
    "scaled_grouped_mm",
    "scaled_mm",
    "select",
    "step_attention",
]

E4M3_MAX = 448.0
BLOCK = 128

# Functions that torch has without promising to keep them.
_scaled_mm: Callable[..., Tensor] = getattr(torch, "_scaled_mm", None) or functional.linear
_grouped_mm: Callable[..., Tensor] = getattr(torch, "_grouped_mm", None) or functional.linear
_scaled_grouped_mm: Callable[..., Tensor] = getattr(torch, "_scaled_grouped_mm", None) or functional.linear


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """E4M3 codes and a scale per row (docs/numerics.md): [..., rows, columns] -> the same, [..., rows]."""
    largest = x.abs().amax(-1).float()
    # On a GPU, torch divides by a number of the host by multiplying with its reciprocal.
    scale = (largest / torch.full((), E4M3_MAX, device=x.device)).clamp(min=1e-12)
    codes = (x.float() * (1.0 / scale).unsqueeze(-1)).clamp(-E4M3_MAX, E4M3_MAX)
    return codes.to(torch.float8_e4m3fn), scale


def quantize_blocks(x: Tensor) -> tuple[Tensor, Tensor]:
    """E4M3 codes and a scale per row and 128 columns: [rows, columns] -> the same, [blocks, rows]."""
    rows, columns = x.shape
    padded = functional.pad(x, (0, -columns % BLOCK)).view(rows, -1, BLOCK)
    codes, scale = quantize_rows(padded)
    return codes.view(rows, -1)[:, :columns].contiguous(), scale.t().contiguous()


def quantize_weight_blocks(w: Tensor) -> tuple[Tensor, Tensor]:
    """E4M3 codes and a scale per 128 x 128: whole blocks [experts, n, k] -> the same, [experts, n / 128, k / 128]."""
    experts, n, k = w.shape
    blocks = w.view(experts, n // BLOCK, BLOCK, k // BLOCK, BLOCK)
    scale = (blocks.abs().amax((2, 4)).float() / E4M3_MAX).clamp(min=1e-12)
    codes = (blocks.float() * (1.0 / scale)[:, :, None, :, None]).clamp(-E4M3_MAX, E4M3_MAX)
    return codes.to(torch.float8_e4m3fn).view(experts, n, k), scale


@cache
def compiled_quantize_rows() -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    compiled: Any = torch.compile(quantize_rows, dynamic=True)
    return compiled  # type: ignore[no-any-return]


def mm_float(x: Tensor, w: Tensor) -> Tensor:
    """x w^T of BF16 with an FP32 result."""
    if x.device.type == "cpu":
        return torch.mm(x.float(), w.float().t())
    return torch.mm(x, w.t(), out_dtype=torch.float32)


def scaled_mm(x: Tensor, x_scale: Tensor, w: Tensor, w_scale: Tensor) -> Tensor:
    """BF16 product of codes with a scale per row of x and per row of w."""
    return _scaled_mm(
        x, w.t(), scale_a=x_scale[:, None], scale_b=w_scale[None, :], out_dtype=torch.bfloat16, use_fast_accum=True
    )


def grouped_mm(x: Tensor, w: Tensor, ends: Tensor) -> Tensor:
    """Rows up to ends[e] (int32) of x [rows, k] times w[e]^T [k, n], BF16."""
    return _grouped_mm(x, w.transpose(1, 2), offs=ends)


def scaled_grouped_mm(x: Tensor, x_scale: Tensor, w: Tensor, w_scale: Tensor, ends: Tensor) -> Tensor:
    """The same of codes with a scale per row of x and per output of each expert."""
    return _scaled_grouped_mm(
        x, w.transpose(1, 2), x_scale, w_scale, offs=ends, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, backend: str | None = None) -> Tensor:
    """Attention of q [batch, heads, rows, width] to k, v [batch, kv heads, tokens, width] by a backend of torch."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def plain() -> Tensor:
        return functional.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=q.shape[1] != k.shape[1])

    if backend is None:
        return plain()
    with sdpa_kernel([getattr(SDPBackend, backend)]):
        return plain()


def step_attention(steps: Sequence[Tensor], ancestry: Sequence[Tensor], heads: int, width: int, scale: float) -> Tensor:
    """Self-attention of the last step's rows over their ancestors' and their own keys.

    Args:
        steps: per step [rows of that step, 3 * heads * width]: q, k, v.
        ancestry: per earlier step int64 [rows].
        heads: of q, k and v.
        width: of a head.
        scale: of the softmax.
    """
    rows = steps[-1].shape[0]
    size = heads * width
    q = steps[-1][:, :size].view(rows, 1, heads, width)
    seen = [step[:, size:][at] for step, at in zip(steps[:-1], ancestry, strict=True)] + [steps[-1][:, size:]]
    kv = torch.stack(seen, 1).view(rows, len(steps), 2, heads, width)
    k, v = kv[:, :, 0], kv[:, :, 1]
    scores = (q * k).sum(-1)
    p = torch.softmax(scores.to(torch.promote_types(scores.dtype, torch.float32)) * scale, 1).to(v.dtype)
    return (p.unsqueeze(-1) * v).sum(1).view(rows, size)


def select(logits: Tensor, scores: Tensor, requests: int, keep: int) -> tuple[Tensor, Tensor]:
    """The best `keep` (row, code) of each request: log-softmax, cumulative scores, torch.topk.

    Args:
        logits: float32 [requests * beams, codes].
        scores: float32 [requests * beams], of the beams so far.
        requests: how many.
        keep: of each.
    """
    total = torch.log_softmax(logits, -1) + scores.unsqueeze(-1)
    best, place = total.view(requests, -1).topk(keep, dim=-1)
    return best, place
