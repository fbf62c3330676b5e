"""Times every op of the engine at a model's shapes beside PyTorch's, each checked in the same run.

    python profiling/bench_ops.py --json profiling/results/bench_ops.json

One table: time, rate, share of what the machine reaches (measured first), time of each baseline over ours, relative
error against double precision. What this torch lacks is reported as absent. `--quick` fits into 90 seconds.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from gpu_facts import clocks, gpu_facts
from gpu_timer import Timer
from op_bench.attention import attention_cases
from op_bench.ceilings import measure_ceilings, warm_up
from op_bench.elementwise import elementwise_cases
from op_bench.grouped import grouped_cases
from op_bench.harness import ALIGN, HEADERS, Bench, Case
from op_bench.linears import linear_cases
from op_bench.selection import selection_cases
from op_runner import Ops
from roofline import datasheet_of
from sizes import SIZES, sized_config

from onerec_engine.cli.output import table

KINDS = ("linear", "grouped", "attention", "elementwise", "selection")


def main() -> int:
    args = _arguments()
    started = time.monotonic()
    seed = random.SystemRandom().randrange(1 << 31) if args.seed is None else args.seed
    torch.manual_seed(seed)
    facts = gpu_facts(args.commit, seed)
    report: dict[str, Any] = {"facts": facts, "datasheet": datasheet_of(facts.get("device", ""))}
    timer = Timer(args.device, samples=5 if args.quick else 9, sample_seconds=1e-3 if args.quick else 3e-3)
    warm_up(args.device, args.ceiling_size, 0.5 if args.quick else 3.0)
    ceilings = measure_ceilings(timer, args.ceiling_size)
    report["ceilings"] = ceilings
    report["clocks_after_ceilings"] = clocks()
    for unit, rate in ceilings.items():
        print(f"ceiling {unit}: {rate / 1e12:.2f} T{'B' if unit == 'copy' else 'FLOP'}/s")
    bench = Bench(
        ops=Ops(args.device),
        timer=timer,
        ceilings=ceilings,
        deadline=started + args.budget,
        l2_bytes=facts.get("l2_bytes", 0),
        compiled=args.device == "cuda" and not args.quick,
    )
    for cases in _series(args, bench):
        bench.run(cases)
    report["rows"] = [row.to_dict() for row in bench.rows]
    report["left_out"] = bench.left_out
    report["failures"] = [failure.what for failure in bench.failures]
    report["clocks_at_end"] = clocks()
    print("\n" + table(HEADERS, [row.cells() for row in bench.rows], ALIGN))
    wrong = [row for row in bench.rows if row.ok is False]
    print(f"\n{len(bench.rows)} lines, {len(wrong)} of them wrong or missing; {time.monotonic() - started:.0f} s")
    if bench.left_out:
        print(f"Out of time ({args.budget} s): {len(bench.left_out)} cases left out, the first {bench.left_out[0]}")
    for failure in bench.failures:
        print(f"FAILED: {failure.what}")
    if args.json:
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 1 if wrong or bench.failures else 0


def _series(args: argparse.Namespace, bench: Bench) -> Iterator[Iterator[Case]]:
    """The cases, a series per model and kind."""
    rows = args.rows
    for model in args.models:
        config = sized_config(model, max(args.contexts), args.codebook)
        if "linear" in args.kinds:
            yield linear_cases(bench, model, config, rows)
        if "grouped" in args.kinds:
            yield grouped_cases(bench, model, config, rows)
        if "attention" in args.kinds:
            yield attention_cases(bench, model, config, rows, args.contexts, args.width)
        if "elementwise" in args.kinds:
            yield elementwise_cases(bench, model, config, rows)
        if "selection" in args.kinds and model == args.models[0]:  # the same at every size
            yield selection_cases(bench, model, config, rows, args.width)


def _arguments() -> argparse.Namespace:
    def integers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    def names(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu tries the script out")
    parser.add_argument("--models", type=names, default=["1B", "MoE 4B-A0.5B"], help=f"of {', '.join(SIZES)}")
    parser.add_argument("--kinds", type=names, default=list(KINDS), help=f"of {','.join(KINDS)}")
    parser.add_argument("--rows", type=integers, help="(default: 32,512,2048,16384)")
    parser.add_argument("--contexts", type=integers, help="tokens of a request (default: 512,3000)")
    parser.add_argument("--width", type=int, default=512, help="beams of a request (default: 512)")
    parser.add_argument("--codebook", type=int, default=8192, help="codes of a level (default: 8192)")
    parser.add_argument("--quick", action="store_true", help="fewer shapes and samples, no torch.compile")
    parser.add_argument("--budget", type=float, help="seconds after which no case begins (default: 540, quick: 80)")
    parser.add_argument("--ceiling-size", type=int, default=8192, help="of the square products (default: 8192)")
    parser.add_argument("--commit", help="what is measured (default: ask git)")
    parser.add_argument("--seed", type=int, help="of the inputs (default: a fresh one, which the report names)")
    parser.add_argument("--json", help="where to write the figures")
    args = parser.parse_args()
    unknown = [name for name in args.models if name not in SIZES] + [k for k in args.kinds if k not in KINDS]
    if unknown:
        parser.error(f"got {', '.join(unknown)}")
    args.rows = args.rows or ([512, 16384] if args.quick else [32, 512, 2048, 16384])
    args.contexts = args.contexts or ([512] if args.quick else [512, 3000])
    args.budget = args.budget or (80.0 if args.quick else 540.0)
    return args


if __name__ == "__main__":
    sys.exit(main())
