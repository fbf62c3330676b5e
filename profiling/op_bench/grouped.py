"""The routed experts' products: BF16, E4M3 per channel, and E4M3 in blocks of 128 x 128."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from op_tensors import Operand
from sizes import Linear, linears
from torch import Tensor

from onerec_engine.config import OneRecV2Config
from op_bench.baselines import (
    grouped_mm,
    quantize_blocks,
    quantize_rows,
    quantize_weight_blocks,
    scaled_grouped_mm,
)
from op_bench.harness import Bench, Case, Contestant, Entry, row_error

__all__ = ["Routed", "grouped_cases"]

BF16_LIMIT = 4e-3
FP8_LIMIT = 5e-3
_CHECKED_PER_EXPERT = 8


@dataclass(frozen=True)
class Routed:
    """Rows routed at random to `top_k` of the experts each, sorted by expert.

    Attributes:
        counts: rows of each expert.
        offsets: int32 [experts + 1], where each expert's rows begin in the engine's layout.
        alignment: what the engine's offsets are multiples of.
        capacity: rows that the engine's layout has room for, however rows are routed.
        places: int64, the place of every routed row in the engine's layout, expert by expert.
        ends: int32 [experts], where each expert's rows end without padding.
    """

    counts: list[int]
    offsets: Tensor
    alignment: int
    capacity: int
    places: Tensor
    ends: Tensor

    @staticmethod
    def at_random(bench: Bench, rows: int, experts: int, top_k: int) -> Routed:
        device = bench.device
        chosen = torch.rand(rows, experts, device=device).topk(top_k, dim=-1).indices
        counts = torch.bincount(chosen.flatten(), minlength=experts).tolist()
        alignment = bench.ops.runner.grouped_alignment(rows, experts, top_k)
        pairs = rows * top_k
        begins, places = [0], []
        for count in counts:
            places.append(torch.arange(count, device=device) + begins[-1])
            begins.append(begins[-1] + -(-count // alignment) * alignment)
        return Routed(
            counts=counts,
            offsets=torch.tensor(begins, dtype=torch.int32, device=device),
            alignment=alignment,
            capacity=(pairs + min(experts, pairs) * (alignment - 1)) // alignment * alignment,
            places=torch.cat(places),
            ends=torch.tensor(counts, device=device).cumsum(0).int(),
        )

    @property
    def live(self) -> int:
        return sum(self.counts)

    def spread(self, values: Tensor, fill: float = 0.0) -> Tensor:
        """Rows expert by expert -> the engine's layout."""
        out = torch.full((self.capacity, *values.shape[1:]), fill, device=values.device).to(values.dtype)
        out[self.places] = values
        return out

    def checked(self) -> list[tuple[int, Tensor]]:
        """Per expert with rows, the numbers of some of them, counted without padding."""
        out, begin = [], 0
        for expert, count in enumerate(self.counts):
            if count:
                step = max(1, count // _CHECKED_PER_EXPERT)
                out.append((expert, torch.arange(begin, begin + count, step, device=self.places.device)))
            begin += count
        return out


def grouped_cases(bench: Bench, model: str, config: OneRecV2Config, rows: Sequence[int]) -> Iterator[Case]:
    """Cases of both products of the routed experts; none for a dense model."""
    for linear in linears(config):
        if linear.experts == 1:
            continue
        shape = (linear.experts, linear.outputs, linear.inputs)
        values = torch.randn(shape, device=bench.device, dtype=torch.bfloat16) / math.sqrt(linear.inputs)
        routed = [Routed.at_random(bench, r, linear.experts, config.num_experts_per_tok) for r in rows]
        for form in ("bf16", "fp8 channel", "fp8 block"):
            weight = Weight.of(bench, form, values)
            for r, routes in zip(rows, routed, strict=True):
                yield _case(bench, model, linear, r, routes, weight)


@dataclass(frozen=True)
class Weight:
    """A stack of weights in one format, as torch and as the engine hold it."""

    form: str
    values: Tensor
    scales: Tensor | None
    packed: object

    @staticmethod
    def of(bench: Bench, form: str, dense: Tensor) -> Weight:
        if form == "bf16":
            return Weight(form, dense, None, bench.ops.pack(dense))
        values, scales = (quantize_rows if form == "fp8 channel" else quantize_weight_blocks)(dense)
        return Weight(form, values, scales, bench.ops.pack(values, scales))

    def expert(self, e: int) -> Tensor:
        """One expert's values, float64."""
        values = self.values[e].double()
        if self.scales is None:
            return values
        scales = self.scales[e].double()
        if scales.ndim == 1:
            return values * scales[:, None]
        return values * scales.repeat_interleave(128, 0).repeat_interleave(128, 1)


def _case(bench: Bench, model: str, linear: Linear, rows: int, routed: Routed, weight: Weight) -> Case:
    fp8 = weight.form != "bf16"
    width = 1 if fp8 else 2
    active = sum(count > 0 for count in routed.counts)
    moved = routed.live * (linear.inputs * width + 2 * linear.outputs) + width * active * linear.outputs * linear.inputs
    x = torch.randn(routed.live, linear.inputs, device=bench.device).bfloat16()
    y = torch.full((routed.capacity, linear.outputs), torch.nan, device=bench.device, dtype=torch.bfloat16)
    quantize: Callable[[Tensor], tuple[Tensor, Tensor]] = (
        quantize_blocks if weight.form == "fp8 block" else quantize_rows
    )
    compact = Operand(*quantize(x)) if fp8 else Operand(x)

    @cache
    def want() -> Tensor:
        given = compact.dequantized()
        return torch.cat([given[at].double() @ weight.expert(e).t() for e, at in routed.checked()])

    checked = torch.cat([at for _, at in routed.checked()])

    def error(got: Tensor) -> float:
        return row_error(got, checked, want())

    def ours() -> Contestant:
        operand = _spread(routed, compact)

        def call() -> None:
            bench.ops.grouped_linear(operand, weight.packed, routed.offsets, y, routed.alignment)  # type: ignore[arg-type]

        return Contestant(
            [call], lambda: row_error(y[routed.places], checked, want()), FP8_LIMIT if fp8 else BF16_LIMIT
        )

    def theirs() -> Contestant:
        if weight.scales is None:

            def plain() -> Tensor:
                return grouped_mm(x, weight.values, routed.ends)

            return Contestant([plain], lambda: error(plain()))
        values, scales = quantize_rows(x)
        same = weight.form == "fp8 channel"
        factors = weight.scales if same else torch.ones(linear.experts, linear.outputs, device=bench.device)

        def call() -> Tensor:
            return scaled_grouped_mm(values, scales, weight.values, factors, routed.ends)

        return Contestant([call], (lambda: error(call())) if same else None)

    name = "torch._grouped_mm" if not fp8 else "torch._scaled_grouped_mm"
    if weight.form == "fp8 block":
        name += " (scales per row and output)"
    return Case(
        model,
        f"{linear.name} {weight.form}",
        rows,
        f"{linear.experts} x {linear.outputs} x {linear.inputs}, {routed.live} rows",
        2.0 * routed.live * linear.outputs * linear.inputs,
        moved,
        "fp8" if fp8 else "bf16",
        [Entry("ours", ours, ours=True), Entry(name, theirs)],
    )


def _spread(routed: Routed, x: Operand) -> Operand:
    """An operand in the engine's layout; padding is what gather_rows makes it."""
    values = routed.spread(x.values.float()).to(x.values.dtype)
    if x.scales is None:
        return Operand(values)
    if x.scales.ndim == 1:
        return Operand(values, routed.spread(x.scales, 1e-12))
    return Operand(values, routed.spread(x.scales.t().contiguous(), 1e-12).t().contiguous())
