"""Ops that move bytes: norms, quantisers, SwiGLU, and the routing of rows to experts. Held against the copy's rate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from op_tensors import Operand
from torch import Tensor
from torch.nn import functional

from onerec_engine.config import OneRecV2Config
from onerec_engine.reference.quantize import dequantize_e4m3, quantize_norm_rows
from op_bench.baselines import quantize_blocks, quantize_rows
from op_bench.harness import Bench, Case, Contestant, Entry, row_error, sample_rows

__all__ = ["elementwise_cases"]

BF16_LIMIT = 3e-3
# Codes may differ by one step where a sum's order moves a value across a tie.
CODES_LIMIT = 5e-3

Quantizer = Callable[[Tensor], tuple[Tensor, Tensor]]
QUANTIZERS: dict[str, Quantizer] = {"row": quantize_rows, "block": quantize_blocks}


def elementwise_cases(bench: Bench, model: str, config: OneRecV2Config, rows: Sequence[int]) -> Iterator[Case]:
    """RMSNorm, quantiser and SwiGLU at the model's widths, each to BF16 and to codes; routing for a mixture."""
    for r in rows:
        yield from _norms(bench, model, config.hidden_size, config.rms_norm_eps, r)
        yield from _quantizers(bench, model, config.d_attention, r)
        yield from _swiglus(bench, model, config.intermediate_size, r)
        if config.n_routed_experts:
            yield from _routing(bench, model, config, r)


def _inputs(bench: Bench, rows: int, columns: int, moved: float) -> list[Tensor]:
    return [torch.randn(rows, columns, device=bench.device).bfloat16() for _ in range(bench.sets(moved))]


def _to_dense(
    bench: Bench,
    x: list[Tensor],
    width: int,
    issue: Callable[[Tensor, Tensor], None],
    exact: Callable[[Tensor], Tensor],
) -> Contestant:
    """An op from BF16 [rows, ...] to BF16 [rows, width]."""
    y = [torch.full((len(a), width), torch.nan, device=bench.device).bfloat16() for a in x]
    rows = sample_rows(len(x[0]), bench.device)
    calls = [lambda a=a, b=b: issue(a, b) for a, b in zip(x, y, strict=True)]
    return Contestant(calls, lambda: row_error(y[0], rows, exact(x[0][rows].double())), BF16_LIMIT)


def _to_codes(
    bench: Bench,
    x: list[Tensor],
    width: int,
    per: str,
    issue: Callable[[Tensor, Operand], None],
    want: Callable[[Tensor], Tensor],
) -> Contestant:
    """An op from BF16 [rows, ...] to codes [rows, width], compared with what the wanted codes stand for."""
    out = [Operand.empty(len(a), width, per, bench.device) for a in x]
    out[0].values.view(torch.uint8).fill_(0x7F)
    rows = sample_rows(len(x[0]), bench.device)

    def error() -> float:
        return row_error(out[0].dequantized(), rows, want(x[0][rows].double()))

    calls = [lambda a=a, b=b: issue(a, b) for a, b in zip(x, out, strict=True)]
    return Contestant(calls, error, CODES_LIMIT)


def _coded(per: str, exact: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What the codes of an op's exact values stand for."""
    return lambda x: Operand(*QUANTIZERS[per](exact(x).float())).dequantized()


def _theirs(x: list[Tensor], call: Callable[[Tensor], Tensor]) -> Contestant:
    return Contestant([lambda a=a: call(a) for a in x])  # type: ignore[misc]


def _moved(rows: int, read: int, written: int, per: str | None) -> float:
    """Bytes of BF16 [rows, read] in and [rows, written] out, as BF16 or as codes with scales."""
    scales = 0 if per is None else 4 if per == "row" else 4 * -(-written // 128)
    return rows * (2.0 * read + (2 if per is None else 1) * written + scales)


def _norms(bench: Bench, model: str, width: int, eps: float, rows: int) -> Iterator[Case]:
    gamma = torch.rand(width, device=bench.device) + 0.5
    largest = float(gamma.max())

    def exact(x: Tensor) -> Tensor:
        return functional.rms_norm(x, (width,), gamma.double(), eps)

    def to_codes(x: Tensor, codes: Operand) -> None:
        bench.ops.rms_norm(x, gamma, eps, quantized=codes, gamma_magnitude=largest)

    def coded_rows(x: Tensor) -> Tensor:
        codes, scales = quantize_norm_rows(x.float(), gamma, eps)
        return dequantize_e4m3(codes) * scales[:, None]

    def torch_norm(x: Tensor) -> Tensor:
        return functional.rms_norm(x, (width,), gamma.bfloat16(), eps)

    for per in (None, "row", "block"):
        moved = _moved(rows, width, width, per)
        x = _inputs(bench, rows, width, moved)

        def ours(per: str | None = per, x: list[Tensor] = x) -> Contestant:
            if per is None:
                return _to_dense(bench, x, width, lambda a, y: bench.ops.rms_norm(a, gamma, eps, y=y), exact)
            return _to_codes(bench, x, width, per, to_codes, coded_rows if per == "row" else _coded(per, exact))

        entries = [Entry("ours", ours, ours=True)]
        if per is None:
            entries.append(Entry("torch rms_norm", lambda x=x: _theirs(x, torch_norm)))  # type: ignore[misc]
        yield Case(model, f"rms_norm to {_target(per)}", rows, f"{width}", 0.0, moved, "copy", entries)


def _quantizers(bench: Bench, model: str, width: int, rows: int) -> Iterator[Case]:
    for per in ("row", "block"):
        moved = _moved(rows, width, width, per)
        x = _inputs(bench, rows, width, moved)

        def ours(per: str = per, x: list[Tensor] = x) -> Contestant:
            return _to_codes(bench, x, width, per, bench.ops.quantize, _coded(per, lambda a: a))

        def theirs(per: str = per, x: list[Tensor] = x) -> Contestant:
            return _theirs(x, lambda a: QUANTIZERS[per](a)[0])

        entries = [Entry("ours", ours, ours=True), Entry("torch, eager", theirs)]
        yield Case(model, f"quantize to {_target(per)}", rows, f"{width}", 0.0, moved, "copy", entries)


def _swiglus(bench: Bench, model: str, width: int, rows: int) -> Iterator[Case]:
    def exact(x: Tensor) -> Tensor:
        return functional.silu(x[:, :width]) * x[:, width:]

    for per in (None, "row", "block"):
        moved = _moved(rows, 2 * width, width, per)
        x = _inputs(bench, rows, 2 * width, moved)

        def ours(per: str | None = per, x: list[Tensor] = x) -> Contestant:
            if per is None:
                return _to_dense(bench, x, width, lambda a, y: bench.ops.swiglu(a, y=y), exact)
            return _to_codes(bench, x, width, per, lambda a, q: bench.ops.swiglu(a, quantized=q), _coded(per, exact))

        entries = [Entry("ours", ours, ours=True)]
        if per is None:
            entries.append(Entry("torch silu, mul", lambda x=x: _theirs(x, exact)))  # type: ignore[misc]
        yield Case(model, f"swiglu to {_target(per)}", rows, f"{width}", 0.0, moved, "copy", entries)


def _routing(bench: Bench, model: str, config: OneRecV2Config, rows: int) -> Iterator[Case]:
    """The three ops around the experts' products, each with the outputs of the one before."""
    experts, top_k, width = config.n_routed_experts, config.num_experts_per_tok, config.hidden_size
    device = bench.device
    alignment = bench.ops.runner.grouped_alignment(rows, experts, top_k)
    room = rows * top_k + experts * alignment
    logits, bias = torch.randn(rows, experts, device=device), torch.zeros(experts, device=device)
    slots, selected = (torch.full((rows, top_k), -1, dtype=torch.int32, device=device) for _ in range(2))
    weights = torch.full((rows, top_k), torch.nan, device=device)
    offsets = torch.full((experts + 1,), -1, dtype=torch.int32, device=device)
    sources = torch.full((room,), -1, dtype=torch.int32, device=device)
    x = torch.randn(rows, width, device=device).bfloat16()
    spread = torch.full((room, width), torch.nan, device=device).bfloat16()
    h = torch.zeros(rows, width, device=device).bfloat16()
    everything = torch.arange(rows, device=device)

    def route() -> None:
        bench.ops.route(
            logits,
            bias,
            top_k=top_k,
            alignment=alignment,
            selected=selected,
            weights=weights,
            offsets=offsets,
            slots=slots,
            sources=sources,
        )

    def routed() -> Contestant:
        def error() -> float:
            scores = torch.sigmoid(logits)
            score = scores.gather(1, selected.long())
            # Of experts whose scores are a rounding apart, torch may take another than the kernel.
            best = bool(((scores.topk(top_k).values - score).abs() <= 4 * torch.finfo(torch.float32).eps).all())
            distinct = bool((selected.sort(-1).values.diff(dim=-1) > 0).all())
            there = bool((sources[slots.long()].long() == everything[:, None]).all())
            if not (best and distinct and there):
                return float("inf")
            return row_error(weights, everything, score / score.sum(-1, keepdim=True))

        return Contestant([route], error, 1e-5)

    def gathered() -> Contestant:
        def error() -> float:
            return row_error(spread[slots.long()].flatten(0, 1), everything, x.repeat_interleave(top_k, 0)[everything])

        return Contestant(
            [lambda: bench.ops.gather_rows(Operand(x), sources, Operand(spread), offsets[experts:])], error, 0.0
        )

    def combined() -> Contestant:
        h.zero_()
        # Every expert gave its input back, and the weights of a row add up to one.
        return Contestant(
            [lambda: bench.ops.moe_combine(spread, slots, weights, h)], lambda: row_error(h, everything, x), BF16_LIMIT
        )

    shape = f"top {top_k} of {experts}"
    one = 2.0 * rows * width
    ops = [
        ("route", routed, rows * (4.0 * experts + 16.0 * top_k), shape),
        ("gather_rows", gathered, one * (1 + top_k), f"{shape}, {width}"),
        ("moe_combine", combined, one * (2 + top_k), f"{shape}, {width}"),
    ]
    for name, make, moved, text in ops:
        yield Case(model, name, rows, text, 0.0, moved, "copy", [Entry("ours", make, ours=True)])


def _target(per: str | None) -> str:
    return "BF16" if per is None else f"codes per {per}"
