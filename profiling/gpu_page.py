"""Writes docs/performance.md from the figures of bench_engine.py, ladder.py, bench_ops.py and kernel_times.py.

    python profiling/gpu_page.py --engine profiling/results/bench_gpu.json --ops profiling/results/bench_ops.json \
        --ladders profiling/results/ladder_*.json --kernels profiling/results/kernels_*.json

Nothing is measured here, and nothing on the page comes from elsewhere.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from roofline import datasheet_of, least_milliseconds
from sizes import sized_config

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/performance.md"

Report = dict[str, Any]


def markdown(headers: list[str], rows: list[list[str]], align: str) -> str:
    """A table; `align` has `<` or `>` per column."""
    marks = ["---" if side == "<" else "---:" for side in align]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [headers, marks, *rows]) + "\n"


def circumstances(facts: Report) -> str:
    """Which machine, software and commit."""
    return (
        f"{facts['device']}, driver {facts['driver']}, torch {facts['torch']}, cuDNN {facts['cudnn']}, "
        f"commit {facts['commit']}"
    )


def generations(report: Report, ceilings: dict[str, float]) -> str:
    """The table of whole generations, ours with their floors at these rates."""
    rows = []
    for run in report["runs"]:
        rival = run["laps"].get("PyTorch, CUDA graph", {}).get("ms_median")
        for name, lap in run["laps"].items():
            precision = name.split(" ")[-1]
            floor = ""
            if precision in ("bf16", "fp8"):
                config = sized_config(run["model"], run["context"])
                sizes = (run["batch"], report["width"], run["context"])
                floor = f"{least_milliseconds(config, *sizes, precision, ceilings):.2f}"
            rows.append(
                [
                    run["row"] + (", among items" if run["constrained"] else ""),
                    name,
                    f"{lap['ms_median']:.2f}",
                    f"{lap['ms_min']:.2f}",
                    f"{lap['requests_per_second']:.0f}",
                    floor,
                    f"{rival / lap['ms_median']:.2f}" if rival else "",
                ]
            )
    headers = ["generation", "by", "ms, median", "ms, least", "requests/s", "floor, ms", "PyTorch's graph / this"]
    return markdown(headers, rows, "<<>>>>>")


def formats(report: Report) -> str:
    """Our FP8 against our BF16, per generation."""
    rows = []
    for run in report["runs"]:
        laps = run["laps"]
        if "core bf16" in laps and "core fp8" in laps:
            ratio = laps["core bf16"]["ms_median"] / laps["core fp8"]["ms_median"]
            rows.append([run["row"] + (", among items" if run["constrained"] else ""), f"{ratio:.2f}"])
    return markdown(["generation", "BF16 / FP8"], rows, "<>")


def rungs(reports: list[Report]) -> str:
    """What every step of every ladder is worth."""
    rows = []
    for report in reports:
        first = report["rungs"][0]["ms_median"]
        before = first
        for rung in report["rungs"]:
            ms = rung["ms_median"]
            what = f"{report['model']}, batch {report['batch']}, context {report['context']}"
            rows.append([what, rung["name"], f"{ms:.2f}", f"{before / ms:.2f}", f"{first / ms:.2f}"])
            before = ms
    return markdown(["generation", "rung", "ms, median", "rung before / this", "eager PyTorch / this"], rows, "<<>>>")


def agreements(report: Report) -> str:
    """What the same run says of the answers."""
    rows = [[o["what"], o["target"], o["got"], o["outcome"]] for o in report["outcomes"]]
    return markdown(["answers", "wanted", "got", "outcome"], rows, "<<<<")


def op_ratios(report: Report) -> str:
    """Per kind of op and rival: the geometric mean, least and largest of rival's time / ours."""
    ratios: dict[tuple[str, str, int], list[float]] = {}
    for row in report["rows"]:
        if row["contestant"].startswith("ours") or not row.get("against_ours"):
            continue
        kind = row["unit"] if row["unit"] in ("fp8", "bf16") else ""
        family = _family(row["op"])
        name = f"{family} {kind}" if kind and kind not in family else family
        key = (name, row["contestant"], row["rows"])
        ratios.setdefault(key, []).append(row["against_ours"])
    cells = []
    for (op, rival, rows), values in sorted(ratios.items()):
        mean = math.exp(sum(map(math.log, values)) / len(values))
        cells.append(
            [op, rival, str(rows), str(len(values)), f"{mean:.2f}", f"{min(values):.2f}", f"{max(values):.2f}"]
        )
    headers = ["op", "rival", "rows", "shapes", "rival / ours, mean", "least", "largest"]
    return markdown(headers, cells, "<<>>>>>")


_LINEARS = ("cross q", "self qkv", "attention o", "gate_up", "down", "head", "router", "shared ")


def _family(op: str) -> str:
    """The row of the table that an op counts towards."""
    if op.startswith("experts "):
        return "grouped linear " + op.removeprefix("experts ").split(maxsplit=1)[1]
    if op.startswith("quantise, "):
        return "quantise and linear"
    return "linear" if op.startswith(_LINEARS) else op


def page(engine: Report, ladders: list[Report], ops: Report, kernels: list[tuple[str, Report]]) -> str:
    """The whole page."""
    reached = ops["ceilings"]
    ceilings = datasheet_of(ops["facts"]["device"]) | reached
    pictures = "\n\n".join(
        f"{report['generation']}: {report['total_us'] / 1e3:.1f} ms under the profiler, "
        f"commit {report['facts']['commit']}\n\n"
        f"![time per kernel](../profiling/results/{name}.png)"
        for name, report in kernels
    )
    return f"""# Performance on the GPU

Written by `profiling/gpu_page.py` from the figures in [profiling/results](../profiling/results). How everything is
measured: [profiling/README.md](../profiling/README.md).

## Whole generations

{circumstances(engine["facts"])}.

```sh
{_command(engine)}
```

Random weights of the report's sizes; beams of {engine["width"]} at all three levels. `core` is a packed batch from host
memory to host memory, `generate` from item ids to items. The floor is that of `profiling/roofline.py` at the rates
under [Ops](#ops).

{generations(engine, ceilings)}
{formats(engine)}
The answers, compared in the same run:

{agreements(engine)}
{_steps(ladders)}## Ops

{circumstances(ops["facts"])}.

```sh
{_command(ops)}
```

Reached by torch on this device: copy {reached["copy"] / 1e12:.2f} TB/s; 8192 x 8192 x 8192 products in BF16
{reached["bf16"] / 1e12:.0f} and in FP8 {reached["fp8"] / 1e12:.0f} TFLOP/s; attention \
{reached["attention"] / 1e12:.0f} TFLOP/s. Ratios of times; above 1, ours takes less.
{beyond_copy(ops)}
{op_ratios(ops)}
{_failures(ops)}![roofline](../profiling/results/bench_ops.png)

## Where the time goes

{pictures}
"""


def beyond_copy(ops: Report) -> str:
    """A sentence where ops of ours that stream through memory were faster than the copy that counts as its rate."""
    streams = [
        (row["bytes"] / row["seconds"], row["op"])
        for row in ops["rows"]
        if row["contestant"] == "ours"
        and row["op"].startswith(("rms_norm", "quantize", "swiglu"))
        and row.get("seconds")
        and row["bytes"] > ops["facts"]["l2_bytes"]
    ]
    rate, op = max(streams, default=(0.0, ""))
    if rate <= ops["ceilings"]["copy"]:
        return ""
    return f"""
{op} of ours moves {rate / 1e12:.2f} TB/s in the same run: the copy is no ceiling, and floors that memory sets are too
high by as much.
"""


def _steps(ladders: list[Report]) -> str:
    """The section of the ladders; nothing without them."""
    if not ladders:
        return ""
    commands = "\n".join(_command(ladder) for ladder in ladders)
    return f"""## What each step is worth

{circumstances(ladders[0]["facts"])}.

```sh
{commands}
```

Every rung adds to the one before it; [profiling/ladder.py](../profiling/ladder.py) says what each is.

{rungs(ladders)}
"""


def _failures(ops: Report) -> str:
    """The lines whose results were not right."""
    wrong = [row for row in ops["rows"] if row["ok"] is False]
    if not wrong:
        return "Every result was right.\n\n"
    lines = "".join(
        f"* {row['model']}, {row['op']}, {row['rows']} rows, {row['contestant']}: error {row['error']:.4f}, "
        f"limit {row['limit']}\n"
        for row in wrong
    )
    return f"Results outside their limits:\n\n{lines}\n"


def _command(report: Report) -> str:
    words = report["facts"]["command"].split()
    kept = [word for at, word in enumerate(words) if word != "--commit" and words[at - 1] != "--commit"]
    return " ".join(kept[: kept.index("--json")] if "--json" in kept else kept)


def _load(name: str) -> Report:
    found: Report = json.loads(Path(name).read_text(encoding="utf-8"))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", required=True, help="of bench_engine.py --device cuda")
    parser.add_argument("--ops", required=True, help="of bench_ops.py")
    parser.add_argument("--ladders", nargs="*", default=[], help="of ladder.py")
    parser.add_argument("--kernels", nargs="*", default=[], help="of kernel_times.py")
    args = parser.parse_args()
    engine, ops, *ladders = (_load(name) for name in (args.engine, args.ops, *args.ladders))
    named = [(Path(name).stem, _load(name)) for name in args.kernels]
    PAGE.write_text(page(engine, ladders, ops, named), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
