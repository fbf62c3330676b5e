"""What the machine reaches through torch at sizes that suit it: the copy, large products, long attention."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from gpu_timer import Timer
from torch import Tensor

from op_bench.attention import BACKENDS
from op_bench.baselines import attend, quantize_rows, scaled_mm

__all__ = ["measure_ceilings", "warm_up"]

cuda: Any = torch.cuda


def warm_up(device: str, size: int, seconds: float) -> None:
    """Multiplies for a while: clocks rise and settle only under load."""
    if device == "cpu":
        return
    x = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    start, end = (cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    spent = 0.0
    while spent < seconds:
        for _ in range(20):
            x @ x
        end.record()
        end.synchronize()
        spent = 1e-3 * start.elapsed_time(end)


def measure_ceilings(timer: Timer, size: int = 8192) -> dict[str, float]:
    """Bytes or operations per second by unit, of random data; a unit that torch has no function for is left out.

    Args:
        timer: for one device.
        size: of the square products; the copy and the attention follow it.
    """
    device = timer.device
    x, w = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    bytes_copied = 16 * size * size
    source = torch.randint(0, 256, (bytes_copied,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    out: dict[str, float] = {}
    tokens, heads, width = size // 2, 16, 128
    q, k, v = (torch.randn(4, heads, tokens, width, device=device, dtype=torch.bfloat16) for _ in range(3))

    def fp8() -> Callable[[], Tensor]:
        (a, sa), (b, sb) = quantize_rows(x), quantize_rows(w)
        return lambda: scaled_mm(a, sa, b, sb)

    numbers, results = source.view(torch.int32), target.view(torch.int32)
    # A copy in a graph is a memcpy node, which falls short of what a kernel reads and writes: the larger rate counts.
    tries: list[tuple[str, float, Callable[[], Callable[[], object]]]] = [
        ("copy", 2.0 * bytes_copied, lambda: lambda: target.copy_(source)),
        ("copy", 2.0 * bytes_copied, lambda: lambda: torch.neg(numbers, out=results)),
        ("bf16", 2.0 * size**3, lambda: lambda: torch.mm(x, w.t())),
        ("fp8", 2.0 * size**3, fp8),
    ]
    work = 4.0 * 4 * heads * tokens * tokens * width
    for backend in BACKENDS.values():
        tries.append(("attention", work, lambda b=backend: lambda: attend(q, k, v, width**-0.5, b)))  # type: ignore[misc]
    for unit, amount, make in tries:
        try:
            rate = amount / timer.torch([make()], amount / 1e15)
        except Exception as reason:
            print(f"ceiling {unit} is absent: {type(reason).__name__}: {str(reason)[:160]}", file=sys.stderr)
            continue
        out[unit] = max(rate, out.get(unit, 0.0))
    return out
