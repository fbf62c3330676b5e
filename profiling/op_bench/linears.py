"""Every dense linear of a model: BF16 and FP8, the quantisation of its input left out and taken in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import torch
from op_tensors import Operand
from sizes import Linear, linears
from torch import Tensor

from onerec_engine.config import OneRecV2Config
from op_bench.baselines import compiled_quantize_rows, mm_float, quantize_rows, scaled_mm
from op_bench.harness import Bench, Case, Contestant, Entry, row_error, sample_rows

__all__ = ["linear_cases"]

# BF16 outputs round by 1.7e-3 at most in the mean; the tensor cores add codes with fewer bits than FP32 has.
BF16_LIMIT = 4e-3
FP8_LIMIT = 5e-3
FLOAT_LIMIT = 1e-4


def linear_cases(bench: Bench, model: str, config: OneRecV2Config, rows: Sequence[int]) -> Iterator[Case]:
    """All cases of the model's linears but the routed experts'."""
    for linear in linears(config):
        if linear.experts > 1:
            continue
        count = bench.weight_sets(2 * linear.parameters)
        weights = [_random(linear.outputs, linear.inputs, bench.device) for _ in range(count)]
        packed = [bench.ops.pack(w) for w in weights]
        for r in rows:
            yield _dense(bench, model, linear, r, weights, packed)
        del packed
        if not linear.quantized:
            continue
        count = bench.weight_sets(linear.parameters)
        codes = [Operand(*quantize_rows(weights[i % len(weights)])) for i in range(count)]
        del weights
        packed = [bench.ops.pack(w.values, w.scales) for w in codes]
        for r in rows:
            yield from _quantized(bench, model, linear, r, codes, packed)


def _random(rows: int, columns: int, device: str) -> Tensor:
    return torch.randn(rows, columns, device=device, dtype=torch.bfloat16) / math.sqrt(columns)


class _Buffers:
    """Sets of inputs, residuals and poisoned outputs."""

    def __init__(self, bench: Bench, linear: Linear, rows: int, weights: int, width: float) -> None:
        out = torch.float32 if linear.logits else torch.bfloat16
        self.bytes = rows * (linear.inputs * width + linear.outputs * (out.itemsize + 2 * linear.residual))
        sets = bench.sets(self.bytes)
        self.calls = range(max(sets, weights))
        shape = (rows, linear.outputs)
        self.x = [torch.randn(rows, linear.inputs, device=bench.device).bfloat16() for _ in range(sets)]
        self.y = [torch.full(shape, torch.nan, dtype=out, device=bench.device) for _ in range(sets)]
        self.h = [torch.randn(shape, device=bench.device).bfloat16() if linear.residual else None for _ in range(sets)]
        self.sample = sample_rows(rows, bench.device)

    def error_of(self, want: Callable[[], Tensor], got: Callable[[], Tensor]) -> Callable[[], float]:
        """Compares sampled rows with x w^T plus the residual."""

        def error() -> float:
            expected = want()
            if self.h[0] is not None:
                expected = expected + self.h[0][self.sample].double()
            return row_error(got(), self.sample, expected)

        return error


def _dense(
    bench: Bench, model: str, linear: Linear, rows: int, weights: list[Tensor], packed: Sequence[object]
) -> Case:
    buffers = _Buffers(bench, linear, rows, len(weights), 2)
    x, y, h, sets, count = buffers.x, buffers.y, buffers.h, len(buffers.x), len(weights)

    @cache
    def want() -> Tensor:
        return x[0][buffers.sample].double() @ weights[0].double().t()

    limit = FLOAT_LIMIT if linear.logits else BF16_LIMIT

    def ours() -> Contestant:
        calls = [
            _bind(bench.ops.linear, Operand(x[i % sets]), packed[i % count], y[i % sets], h[i % sets])
            for i in buffers.calls
        ]
        return Contestant(calls, buffers.error_of(want, lambda: y[0]), limit)

    def by(product: Callable[[Tensor, Tensor, Tensor | None], Tensor]) -> Contestant:
        calls = [_bind(product, x[i % sets], weights[i % count], h[i % sets]) for i in buffers.calls]
        return Contestant(calls, buffers.error_of(want, lambda: product(x[0], weights[0], h[0])))

    def mm(x: Tensor, w: Tensor, h: Tensor | None) -> Tensor:
        return torch.mm(x, w.t()) if h is None else torch.addmm(h, x, w.t())

    entries = [Entry("ours", ours, ours=True)]
    if linear.logits:
        entries.append(Entry("torch.mm, FP32 out", lambda: by(lambda x, w, _: mm_float(x, w))))
    entries.append(Entry("torch.addmm" if linear.residual else "torch.mm", lambda: by(mm)))
    return Case(
        model,
        linear.name,
        rows,
        _shape(linear),
        2.0 * rows * linear.parameters,
        buffers.bytes + 2 * linear.parameters,
        "bf16",
        entries,
    )


def _quantized(
    bench: Bench, model: str, linear: Linear, rows: int, weights: list[Operand], packed: Sequence[object]
) -> Iterator[Case]:
    buffers = _Buffers(bench, linear, rows, len(weights), 1)
    x, y, h, sets, count = buffers.x, buffers.y, buffers.h, len(buffers.x), len(weights)
    coded = [Operand(*quantize_rows(values)) for values in x]
    own = [Operand.empty(rows, linear.inputs, "row", bench.device) for _ in x]

    @cache
    def want() -> Tensor:
        return coded[0].dequantized()[buffers.sample].double() @ weights[0].dequantized().double().t()

    def torch_product(codes: Tensor, scales: Tensor | None, w: Operand, h: Tensor | None) -> Tensor:
        assert scales is not None
        assert w.scales is not None
        out = scaled_mm(codes, scales, w.values, w.scales)
        return out if h is None else out.add_(h)

    def ours() -> Contestant:
        calls = [
            _bind(bench.ops.linear, coded[i % sets], packed[i % count], y[i % sets], h[i % sets]) for i in buffers.calls
        ]
        return Contestant(calls, buffers.error_of(want, lambda: y[0]), FP8_LIMIT)

    def theirs() -> Contestant:
        def call(i: int) -> Tensor:
            return torch_product(coded[i % sets].values, coded[i % sets].scales, weights[i % count], h[i % sets])

        return Contestant([_bind(call, i) for i in buffers.calls], buffers.error_of(want, lambda: call(0)))

    def ours_whole() -> Contestant:
        def call(i: int) -> None:
            bench.ops.quantize(x[i % sets], own[i % sets])
            bench.ops.linear(own[i % sets], packed[i % count], y[i % sets], h[i % sets])  # type: ignore[arg-type]

        y[0].fill_(torch.nan)
        return Contestant([_bind(call, i) for i in buffers.calls], buffers.error_of(want, lambda: y[0]), FP8_LIMIT)

    def theirs_whole(quantize: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Contestant:
        def call(i: int) -> Tensor:
            return torch_product(*quantize(x[i % sets]), weights[i % count], h[i % sets])

        return Contestant([_bind(call, i) for i in buffers.calls], buffers.error_of(want, lambda: call(0)))

    add = " + add" if linear.residual else ""
    flops = 2.0 * rows * linear.parameters
    moved = buffers.bytes + linear.parameters
    alone = [Entry("ours", ours, ours=True), Entry(f"torch._scaled_mm{add}", theirs)]
    yield Case(model, f"{linear.name} fp8", rows, _shape(linear), flops, moved, "fp8", alone)
    whole = [
        Entry("ours: quantize, linear", ours_whole, ours=True),
        Entry(f"torch: eager quantiser, _scaled_mm{add}", lambda: theirs_whole(quantize_rows)),
    ]
    if bench.compiled:
        whole.append(
            Entry(f"torch: compiled quantiser, _scaled_mm{add}", lambda: theirs_whole(compiled_quantize_rows()))
        )
    moved += 3 * rows * linear.inputs
    yield Case(model, f"quantise, {linear.name} fp8", rows, _shape(linear), flops, moved, "fp8", whole)


def _shape(linear: Linear) -> str:
    return f"{linear.outputs} x {linear.inputs}"


def _bind(function: Callable[..., object], *arguments: object) -> Callable[[], object]:
    return lambda: function(*arguments)
