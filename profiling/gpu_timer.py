"""How long work on a device takes: replays of a recording between events, the median of several samples."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from op_runner import Ops

__all__ = ["Timer", "rotations"]

cuda: Any = torch.cuda

Call = Callable[[], object]


def rotations(bytes_per_call: float, at_least: float, most: int = 128) -> int:
    """How many sets of buffers make calls in turn touch `at_least` bytes before one is used again."""
    return max(1, min(most, math.ceil(at_least / max(bytes_per_call, 1.0))))


@dataclass
class Timer:
    """Times calls that are recorded one behind the other into one graph; plain calls on a CPU.

    Attributes:
        device: "cuda" or "cpu".
        samples: of which the median counts.
        sample_seconds: the least duration of one sample.
    """

    device: str
    samples: int = 9
    sample_seconds: float = 2e-3

    def ours(self, ops: Ops, calls: Sequence[Call], floor: float) -> float:
        """Seconds of one call of `ops`. `floor`: no call is expected to take less."""
        chosen = self._sequence(calls, floor)
        recording = ops.record(lambda: _run(chosen))
        return self._measure(lambda: ops.runner.replay(recording), len(chosen), ops.stream)

    def torch(self, calls: Sequence[Call], floor: float) -> float:
        """Seconds of one call of torch functions."""
        chosen = self._sequence(calls, floor)
        if self.device == "cpu":
            return self._measure(lambda: _run(chosen), len(chosen), None)
        stream = cuda.Stream()
        stream.wait_stream(cuda.current_stream())
        with cuda.stream(stream):
            for call in chosen[:3]:  # libraries choose and load their kernels before the capture
                call()
        cuda.synchronize()
        graph = cuda.CUDAGraph()
        with cuda.stream(stream):
            # Not the context manager torch.cuda.graph: it empties torch's cache of memory every time.
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                _run(chosen)
            finally:
                graph.capture_end()
            return self._measure(graph.replay, len(chosen), stream)

    def _sequence(self, calls: Sequence[Call], floor: float) -> list[Call]:
        """Every call as often as it takes to hide what it costs to launch a graph."""
        if self.device == "cpu":
            return list(calls)
        turns = math.ceil(5e-4 / max(floor * len(calls), 1e-9))
        return list(calls) * max(1, min(turns, math.ceil(256 / len(calls))))

    def _measure(self, replay: Call, calls: int, stream: Any) -> float:
        run = self._events if stream is not None else self._clock
        replay()
        once = run(replay, 1, stream)
        replays = max(1, min(100, math.ceil(self.sample_seconds / max(once, 1e-7))))
        return statistics.median(run(replay, replays, stream) for _ in range(self.samples)) / replays / calls

    def _events(self, replay: Call, replays: int, stream: Any) -> float:
        start, end = (cuda.Event(enable_timing=True) for _ in range(2))
        start.record(stream)
        for _ in range(replays):
            replay()
        end.record(stream)
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3

    def _clock(self, replay: Call, replays: int, _: Any) -> float:
        started = time.perf_counter()
        for _ in range(replays):
            replay()
        return time.perf_counter() - started


def _run(calls: Sequence[Call]) -> None:
    for call in calls:
        call()
