"""Where the time of one generation goes, kernel by kernel, as it runs from the recorded CUDA graph.

    python profiling/kernel_times.py --model 1B --batch 32 --precision fp8 --json profiling/results/kernels.json

Needs nothing but torch: its profiler sees every kernel of the process, those of a graph too. Kernels overlap, since the
next may be started while the one before still runs (programmatic dependent launch), so durations do not add up. What is
printed does: a kernel's share is the time by which it ends later than everything before it, and what no kernel covers
is idle time.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import one_generation
import torch
from gpu_facts import gpu_facts
from torch.profiler import ProfilerActivity, profile

from onerec_engine.cli.output import table

__all__ = ["Activity", "read_trace", "shares", "short_name"]

IDLE = "(idle)"


@dataclass(frozen=True)
class Activity:
    """A kernel, copy or fill on the device; times in microseconds."""

    name: str
    start: float
    duration: float

    @property
    def end(self) -> float:
        return self.start + self.duration


def read_trace(path: Path) -> list[Activity]:
    """The device's activities in a trace that torch's profiler wrote, by their ends."""
    events: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    wanted = {"kernel", "gpu_memcpy", "gpu_memset"}
    found = [
        Activity(str(event["name"]), float(event["ts"]), float(event["dur"]))
        for event in events
        if event.get("cat") in wanted and event.get("ph") == "X"
    ]
    return sorted(found, key=lambda activity: (activity.end, activity.start))


def shares(activities: Iterable[Activity]) -> list[tuple[str, float]]:
    """Splits the time from the first start to the last end among the activities of one stream and idle time."""
    out: list[tuple[str, float]] = []
    reached: float | None = None
    for activity in activities:
        begin = activity.start if reached is None else max(activity.start, reached)
        if reached is not None and activity.start > reached:
            out.append((IDLE, activity.start - reached))
        out.append((activity.name, activity.end - begin))
        reached = activity.end
    return out


def short_name(name: str) -> str:
    """A kernel's name without namespaces and parameters; of a CUTLASS product its operands and tile."""
    if "GemmUniversal" in name:
        plain = re.sub(r"\((?:unsigned )?\w+\)", "", name)
        # The largest triple is the tile; others are clusters and instructions.
        triples = re.findall(r"C<(\d+)>, ?(?:cute::)?C<(\d+)>, ?(?:cute::)?C<(\d+)>", plain)
        tile = max(triples, key=lambda triple: int(triple[0]) * int(triple[1]) * int(triple[2]), default=())
        return f"CUTLASS {'e4m3' if 'float_e4m3' in name else 'bf16'} {'x'.join(tile)}".rstrip()
    plain = _without_parameters(name.removeprefix("void "))
    plain = re.sub(r"\((?:anonymous namespace|[\w ]+)\)(?:::)?", "", plain)
    plain = re.sub(r"(?:\w+::)+", "", plain)
    return plain if len(plain) <= 70 else plain[:67] + "..."


def _without_parameters(name: str) -> str:
    """Cuts a function's name at the bracket of its parameters: the first that is open outside of template arguments."""
    depth = 0
    for place, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">" and name[place - 1] != "-")
        if letter == "(" and depth == 0 and place and not name.startswith("(anonymous", place):
            return name[:place].strip()
    return name


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    one_generation.add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=5, help="generations, of which the median counts (default: 5)")
    parser.add_argument("--trace", help="where to keep the trace of one generation, for a viewer such as Perfetto")
    parser.add_argument("--commit", help="what is measured (default: ask git)")
    parser.add_argument("--json", help="where to write the figures")
    args = parser.parse_args()
    if not torch.cuda.is_available() or args.device != "cuda":
        parser.error("there are no kernels to be timed without a GPU")
    with one_generation.loaded(args) as generation, tempfile.TemporaryDirectory() as scratch:
        traces = []
        for turn in range(args.rounds + 1):
            path = Path(args.trace) if args.trace and turn == args.rounds else Path(scratch) / "trace.json"
            found = _profile(generation, path)
            if turn:
                traces.append(found)
        name = generation.name
    if not traces[0]:
        print("[kernel_times] torch's profiler saw no kernel. Does another profiler hold CUPTI?", file=sys.stderr)
        return 1
    rows = _summary(traces)
    total = sum(row["us"] for row in rows)
    print(f"{name}: {total / 1e3:.3f} ms, {sum(row['count'] for row in rows if row['kernel'] != IDLE)} activities\n")
    cells = [
        [row["kernel"], row["count"], f"{row['us']:.1f}", f"{row['us'] / total:.1%}", f"{row['us'] / row['count']:.2f}"]
        for row in rows
    ]
    print(table(["kernel", "count", "us", "share", "us each"], cells, "<>>>>"))
    if args.json:
        content = {"facts": gpu_facts(args.commit), "generation": name, "total_us": total, "kernels": rows}
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        Path(args.json).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


def _profile(generation: one_generation.Generation, path: Path) -> list[Activity]:
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        generation.run(replay=True)
    profiler.export_chrome_trace(str(path))
    return read_trace(path)


def _summary(traces: list[list[Activity]]) -> list[dict[str, Any]]:
    """Per short name: how often, and microseconds, the median over the generations; the longest first."""
    totals: list[dict[str, float]] = []
    counts: dict[str, int] = {}
    for trace in traces:
        total: dict[str, float] = {}
        count: dict[str, int] = {}
        for name, duration in shares(trace):
            short = name if name == IDLE else short_name(name)
            total[short] = total.get(short, 0.0) + duration
            count[short] = count.get(short, 0) + 1
        totals.append(total)
        counts |= count
    median = {name: statistics.median(total.get(name, 0.0) for total in totals) for name in counts}
    ranked = sorted(median, key=lambda name: -median[name])
    return [{"kernel": name, "count": counts[name], "us": median[name]} for name in ranked]


if __name__ == "__main__":
    sys.exit(main())
