"""The rounding policies of docs/numerics.md, emulated in FP32, with taps on the operands of the matrix products."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from onerec_engine.reference.numerics import ContextKV, Native, RMSNorm
from onerec_engine.reference.quantize import (
    BLOCK,
    dequantize_e4m3,
    quantize_block_128x128,
    quantize_norm_rows,
    quantize_row_blocks,
    quantize_rows,
    round_bf16,
)

__all__ = ["Emulated", "Operand", "OperandTap", "Precision", "Quantized", "Scheme"]

Precision = Literal["fp32", "bf16", "fp8"]

Scheme = Literal["plain", "channel", "block"]
"""How ``fp8`` holds a linear's operands: not at all, per token and output channel, or 1 x 128 and 128 x 128."""


class Quantized(NamedTuple):
    """E4M3 codes (uint8 [M, K]) and their FP32 scales ([M], or one per 128-wide block)."""

    codes: Tensor
    scales: Tensor


Operand = Tensor | Quantized
"""A linear's left-hand side: values as stored, float32 [M, K], or codes and scales."""

OperandTap = Callable[[str, int, Operand], Operand | None]
"""Called as tap(name, step, operand) at each linear, `operand` being this side's activation as it is multiplied.

`name` is the fused group's (``model.layers.{l}.self_attn.qkv_proj`` ...), rows are in the order of the step's rows;
for routed experts row * k + i is the i-th selected expert of a row. The context's linears, whose rows are a pathway's
tokens, come before step 0 and carry its number. A returned operand of the same type and shapes replaces this side's.
"""


class Emulated(Native):
    """FP32 arithmetic that rounds at the points of docs/numerics.md, and nowhere else.

    Keeps a prepared copy of each weight: make a new object after a weight has changed. The model must hold the
    checkpoint's values in FP32.
    """

    exact = True

    def __init__(
        self,
        precision: Precision,
        *,
        experts: Literal["block", "channel"] = "block",
        tap: OperandTap | None = None,
        weights: Mapping[str, Quantized] | None = None,
    ) -> None:
        """Makes a policy.

        Args:
            precision: which column of the table.
            experts: scheme of the routed experts under ``fp8``.
            tap: sees, and may replace, the left-hand side of every linear.
            weights: pre-quantised weights by checkpoint name, used instead of quantising the model's own.
        """
        self.precision = precision
        self.experts_scheme = experts
        self.tap = tap
        self._given = dict(weights or {})
        self._tables: dict[Tensor, Tensor] = {}
        self._linears: dict[str, Tensor] = {}
        self._quantized: dict[str, tuple[Tensor, Tensor]] = {}
        self._normed: MutableMapping[Tensor, tuple[Tensor, RMSNorm]] = WeakTensorKeyDictionary()

    def store(self, x: Tensor) -> Tensor:
        """Rounds to BF16 unless the precision is ``fp32``."""
        return x.float() if self.precision == "fp32" else round_bf16(x)

    def table(self, weight: Tensor) -> Tensor:
        """The weight as stored: rounded to BF16 unless the precision is ``fp32``."""
        if self.precision == "fp32":
            return weight.float()
        if weight not in self._tables:
            self._tables[weight] = round_bf16(weight.detach())
        return self._tables[weight]

    def norm(self, x: Tensor, norm: RMSNorm) -> Tensor:
        """The norm (x * rstd) * gamma with rstd = 1 / sqrt(mean(x^2) + eps), in FP32.

        What it was made of is remembered as long as the result lives: its codes per row are not made from the result.
        """
        rstd = 1.0 / torch.sqrt(x.square().mean(-1, keepdim=True) + norm.eps)
        y = (x * rstd) * norm.weight.float()
        self._normed[y] = x, norm
        return y

    def linear(self, name: str, x: Tensor, layers: Sequence[nn.Linear]) -> list[Tensor]:
        """Block linears; quantises (``fp8``) or rounds (``bf16``) their common input first."""
        prefix = name.rsplit(".", 1)[0]
        leading = x.shape[:-1]
        operand = self.operand(name, x, "channel")
        outputs = []
        for member, layer in zip(_members(name), layers, strict=True):
            total = self.product(operand, f"{prefix}.{member}.weight", layer.weight, "channel")
            if layer.bias is not None:
                total = total + layer.bias.float()
            outputs.append(total.view(*leading, total.shape[-1]))
        return outputs

    def plain_linear(self, name: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """A linear of stored input and BF16 (or FP32) weight, summed in FP32."""
        operand = self.operand(name, x, "plain")
        if not isinstance(operand, Tensor):
            raise TypeError(f"[tap] got codes for {name}, which is never quantised. Return values.")
        total = (operand @ self.table(weight).T).view(*x.shape[:-1], weight.shape[0])
        return total if bias is None else total + bias.float()

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        """SwiGLU as g / (1 + exp(-g)) * u in FP32."""
        return gate / (1.0 + torch.exp(-gate)) * up

    def cross_attention(self, q: Tensor, kv: ContextKV, group: int, scale: float) -> Tensor:
        """The numerator uses p = exp(s - max) as rounded, the denominator p as computed."""
        keys, values = kv.keys[group], kv.values[group]
        batch, rows, heads, width = q.shape
        groups = keys.shape[1]
        q = q.view(batch, rows, groups, heads // groups, width).permute(0, 2, 3, 1, 4)
        scores = scale * (q @ keys.unsqueeze(2).transpose(-1, -2))
        if kv.mask is not None:
            scores = scores.masked_fill(~kv.mask[:, None, None, None, :], -torch.inf)
        p = torch.exp(scores - scores.amax(-1, keepdim=True))
        out = (self.store(p) @ values.unsqueeze(2)) / p.sum(-1, keepdim=True)
        out = out.permute(0, 3, 1, 2, 4).reshape(batch, rows, heads * width)
        return out if kv.present is None else out.masked_fill(~kv.present[:, None, None], 0.0)

    def causal_attention(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Self-attention of whole rows, p unrounded."""
        batch, rows, heads, width = q.shape
        groups = k.shape[2]
        q = q.view(batch, rows, groups, heads // groups, width).permute(0, 2, 3, 1, 4)
        k, v = (x.permute(0, 2, 1, 3).unsqueeze(2) for x in (k, v))
        later = torch.ones(rows, rows, dtype=torch.bool, device=q.device).triu(1)
        scores = (scale * (q @ k.transpose(-1, -2))).masked_fill(later, -torch.inf)
        p = torch.exp(scores - scores.amax(-1, keepdim=True))
        out = (p @ v) / p.sum(-1, keepdim=True)
        return out.permute(0, 3, 1, 2, 4).reshape(batch, rows, heads * width)

    def step_attention(self, q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], scale: float) -> Tensor:
        """Self-attention of one decode step, p unrounded."""
        rows, heads, width = q.shape
        groups = keys[0].shape[1]
        grouped = q.view(rows, groups, heads // groups, width)
        scores = scale * torch.stack([(grouped * k.unsqueeze(2)).sum(-1) for k in keys], -1)
        p = torch.exp(scores - scores.amax(-1, keepdim=True))
        terms = [p[..., s, None] * v.unsqueeze(2) for s, v in enumerate(values)]
        return (torch.stack(terms).sum(0) / p.sum(-1, keepdim=True)).reshape(rows, heads * width)

    def operand(self, name: str, x: Tensor, scheme: Scheme, *, repeats: int = 1) -> Operand:
        """An input as linear `name` takes it, after the tap.

        Args:
            name: the linear's, for the tap.
            x: float32 [..., K]; the very tensor that `norm` returned where the input is a norm's.
            scheme: the linear's.
            repeats: how often each row follows itself.

        Returns:
            Values, or codes and scales under ``fp8``, of all rows: [M * repeats, K] where x has M.
        """
        own: Operand
        if self.precision != "fp8" or scheme == "plain":
            own = self.store(_rows(x)).repeat_interleave(repeats, 0)
        else:
            own = Quantized(*(part.repeat_interleave(repeats, 0) for part in self._quantize(x, scheme)))
        replaced = self.tap(name, self.step, own) if self.tap is not None else None
        return own if replaced is None else replaced

    def _quantize(self, x: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
        """Codes and scales of all rows of x [..., K]."""
        if scheme == "block":
            return quantize_row_blocks(_rows(x))
        if x not in self._normed:
            return quantize_rows(_rows(x))
        source, norm = self._normed[x]
        return quantize_norm_rows(_rows(source), norm.weight.float(), norm.eps)

    def weight_operand(self, name: str, weight: Tensor, scheme: Scheme) -> Quantized:
        """Codes and scales of a weight [N, K], from the checkpoint if it was pre-quantised."""
        if name in self._given:
            return self._given[name]
        value = weight.detach().float()
        return Quantized(*(quantize_block_128x128(value) if scheme == "block" else quantize_rows(value)))

    def product(self, operand: Operand, name: str, weight: Tensor, scheme: Scheme) -> Tensor:
        """Operand [M, K] times weight [N, K] transposed, the FP32 sum with scales applied [M, N].

        Args:
            operand: stored values, or codes and scales under ``fp8``.
            name: the weight's checkpoint name.
            weight: its value.
            scheme: the weight's.
        """
        if isinstance(operand, Tensor):
            if name not in self._linears:
                self._linears[name] = self.store(weight.detach())
            return operand @ self._linears[name].T
        if name not in self._quantized:
            codes, scales = self.weight_operand(name, weight, scheme)
            self._quantized[name] = dequantize_e4m3(codes), scales
        w, w_scale = self._quantized[name]
        a = dequantize_e4m3(operand.codes)
        if scheme != "block":
            return operand.scales[:, None] * (w_scale * (a @ w.T))
        total = a.new_zeros(a.shape[0], w.shape[0])
        for kb in range(w_scale.shape[1]):
            columns = slice(kb * BLOCK, (kb + 1) * BLOCK)
            scale = w_scale[:, kb].repeat_interleave(BLOCK)[: w.shape[0]]
            total += (operand.scales[:, kb, None] * scale) * (a[:, columns] @ w[:, columns].T)
        return total


def _rows(x: Tensor) -> Tensor:
    """[..., K] as [M, K]."""
    return x.reshape(-1, x.shape[-1])


def _members(name: str) -> tuple[str, ...]:
    """Linears of a fused group: qkv_proj -> q_proj, k_proj, v_proj."""
    last = name.rsplit(".", 1)[1]
    groups = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
    return groups.get(last, (last,))
