"""Cross-attention over the shared context, and self-attention over the beams' ancestors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from onerec_engine.config import OneRecV2Config
from op_bench.baselines import attend, step_attention
from op_bench.harness import Bench, Case, Contestant, Entry, row_error, sample_rows

__all__ = ["attention_cases"]

CROSS_LIMIT = 8e-3  # softmax numerators and outputs are rounded to BF16
SELF_LIMIT = 4e-3
BACKENDS = {"cuDNN": "CUDNN_ATTENTION", "flash": "FLASH_ATTENTION"}


def attention_cases(
    bench: Bench, model: str, config: OneRecV2Config, rows: Sequence[int], contexts: Sequence[int], width: int
) -> Iterator[Case]:
    """Cross-attention at every context, and self-attention at the last step.

    Up to one row per request of 32 there is one beam a request, as at the first step; beyond, `width` beams.
    """
    for r in rows:
        beams = 1 if r <= 32 else min(width, r)
        for tokens in contexts:
            yield _cross(bench, model, config, r // beams, beams, tokens)
        if r > 32:
            yield _self(bench, model, config, r // beams, beams)


def _offsets(requests: int, size: int, device: str) -> Tensor:
    return torch.arange(requests + 1, device=device, dtype=torch.int32) * size


def _cross(bench: Bench, model: str, config: OneRecV2Config, requests: int, beams: int, tokens: int) -> Case:
    heads, groups, width = config.num_attention_heads, config.num_context_kv_heads, config.head_dim
    rows = requests * beams
    moved = 2.0 * (2 * rows * heads * width + requests * tokens * groups * width)
    sets = bench.sets(moved)

    def random(count: int, columns: int) -> list[Tensor]:
        return [torch.randn(count, columns, device=bench.device).bfloat16() for _ in range(sets)]

    q, kv = random(rows, heads * width), random(requests * tokens, groups * width)
    out = [torch.full_like(x, torch.nan) for x in q]
    context_offsets, row_offsets = (_offsets(requests, size, bench.device) for size in (tokens, beams))

    def split(x: Tensor) -> Tensor:
        return x.view(requests, -1, x.shape[1] // width, width).transpose(1, 2)

    def error(got: Tensor) -> float:
        """Compares the first and the last head of the first and the last request."""
        parts, wants = [], []
        queries, keys, found = split(q[0]), split(kv[0]), split(got)
        for b in {0, requests - 1}:
            for h in {0, heads - 1}:
                k = keys[b, h * groups // heads].double()
                scores = queries[b, h].double() @ k.t() * config.attention_scale
                wants.append(torch.softmax(scores, -1) @ k)
                parts.append(found[b, h])
        if not bool(torch.isfinite(got).all()):
            return float("inf")
        flat = torch.cat(parts)
        return row_error(flat, torch.arange(len(flat), device=flat.device), torch.cat(wants))

    def ours() -> Contestant:
        def call(i: int) -> Callable[[], None]:
            return lambda: bench.ops.cross_attention(
                q[i],
                kv[i],
                kv[i],
                out[i],
                context_offsets=context_offsets,
                row_offsets=row_offsets,
                request_rows=beams,
                request_tokens=tokens,
                heads=heads,
                kv_heads=groups,
                scale=config.attention_scale,
            )

        return Contestant([call(i) for i in range(sets)], lambda: error(out[0]), CROSS_LIMIT)

    def theirs(backend: str) -> Contestant:
        def call(i: int) -> Tensor:
            k = split(kv[i])
            return attend(split(q[i]), k, k, config.attention_scale, backend)

        calls = [lambda i=i: call(i) for i in range(sets)]
        return Contestant(calls, lambda: error(call(0).transpose(1, 2).reshape(rows, -1)))

    entries = [Entry("ours", ours, ours=True)]
    entries += [Entry(f"torch SDPA, {name}", lambda b=b: theirs(b)) for name, b in BACKENDS.items()]  # type: ignore[misc]
    shape = f"{requests} x {beams} beams, {tokens} tokens, {heads} heads of {width}"
    flops = 4.0 * rows * tokens * heads * width
    return Case(model, "cross-attention", rows, shape, flops, moved, "attention", entries)


def _self(bench: Bench, model: str, config: OneRecV2Config, requests: int, beams: int) -> Case:
    heads, groups, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    rows, steps = requests * beams, config.levels
    columns = (heads + 2 * groups) * width
    # The first step's rows are one per request: they stay in the cache.
    moved = 2.0 * rows * (columns + (steps - 2) * 2 * groups * width + heads * width)
    sets = bench.sets(moved)
    sizes = [requests] + [rows] * (steps - 1)
    qkv = [[torch.randn(size, columns, device=bench.device).bfloat16() for size in sizes] for _ in range(sets)]
    request = torch.arange(rows, device=bench.device) // beams
    ancestry = [request.int()]
    for _ in range(steps - 2):
        ancestry.append((request * beams + torch.randint(0, beams, (rows,), device=bench.device)).int())
    out = [torch.full((rows, heads * width), torch.nan, device=bench.device).bfloat16() for _ in range(sets)]
    sample = sample_rows(rows, bench.device)
    long = [at.long() for at in ancestry]
    scale = config.attention_scale

    def want() -> Tensor:
        exact = [step.double() for step in qkv[0][:-1]] + [qkv[0][-1][sample].double()]
        return step_attention(exact, [at[sample] for at in long], heads, width, scale)

    def ours() -> Contestant:
        def call(i: int) -> Callable[[], None]:
            return lambda: bench.ops.self_attention(qkv[i], ancestry, out[i], heads=heads, kv_heads=groups, scale=scale)

        return Contestant([call(i) for i in range(sets)], lambda: row_error(out[0], sample, want()), SELF_LIMIT)

    def theirs() -> Contestant:
        def call(i: int) -> Tensor:
            return step_attention(qkv[i], long, heads, width, scale)

        calls = [lambda i=i: call(i) for i in range(sets)]
        return Contestant(calls, lambda: row_error(call(0), sample, want()))

    entries = [Entry("ours", ours, ours=True)]
    if groups == heads:
        entries.append(Entry("torch: gather, softmax", theirs))
    shape = f"{requests} x {beams} beams, step {steps - 1}, {heads} heads of {width}"
    return Case(model, "self-attention", rows, shape, 0.0, moved, "copy", entries)
