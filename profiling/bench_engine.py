"""Times the engine against PyTorch and Hugging Face on the same requests, and checks the answers in the same run.

    python profiling/bench_engine.py --json profiling/results/bench.json
    python profiling/bench_engine.py --device cuda --json profiling/results/bench_gpu.json

On a CPU every contestant runs in a process of its own on the same number of threads; they are asked in turns. Needs the
extras `profile` and `bench` (Hugging Face transformers); without the latter that comparison is left out and said so.
With `--device cuda` see bench_engine_gpu.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import verdicts
from contestants.protocol import Task
from race import Lap, race, started
from verdicts import Verdict
from workloads import WIDE, bundled_requests, random_requests, tiny_checkpoint, wide_checkpoint

from onerec_engine.cli.machine import describe, machine
from onerec_engine.cli.options import checkpoint_path
from onerec_engine.cli.output import byte_text, table


@dataclass(frozen=True)
class Workload:
    """A checkpoint, its requests, and who answers them."""

    name: str
    checkpoint: Path
    requests: Path
    beam_width: int
    batches: list[int]


def main() -> int:
    args = _arguments()
    if args.device == "cuda":
        import bench_engine_gpu

        return bench_engine_gpu.run(args)
    facts = machine()
    threads = args.threads or facts["usable_cores"]
    load = os.getloadavg()[0]
    print(f"{describe(facts)}, {threads} threads, load {load:.2f}")
    if load > 0.3:
        print("WARNING: this machine is not idle; the times below are not to be relied on.")
    report: dict[str, Any] = {"machine": facts, "threads": threads, "load": load, "rounds": args.rounds, "runs": []}
    outcomes: list[Verdict] = []
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(args.work or scratch)
        empty = _empty_process(work, threads)
        report["empty_process_bytes"] = empty
        for workload in _workloads(args, work):
            for precision in args.precisions or ["fp32", "bf16"]:
                run, judged = _compete(args, workload, precision, threads, facts, empty)
                report["runs"].append(run)
                outcomes += judged
    report["outcomes"] = [outcome.to_dict() for outcome in outcomes]
    print("\n" + table(["what", "target", "got", "outcome"], [(o.what, o.target, o.got, o.outcome) for o in outcomes]))
    if args.json:
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        Path(args.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 1 if any(outcome.met is False for outcome in outcomes) else 0


def _arguments() -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="the demo's checkpoint (default: the bundled one)")
    parser.add_argument("--workloads", type=names, default=["demo", WIDE], metavar="NAME,NAME")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--precisions", type=names, metavar="NAME,NAME", help="(default: fp32,bf16; on a GPU: bf16,fp8)"
    )
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds (default: 7)")
    parser.add_argument("--threads", type=int, help="of every contestant (default: the usable cores)")
    parser.add_argument("--work", help="where the 0.1B checkpoint is made and kept (default: a temporary directory)")
    parser.add_argument("--hf-python", default=sys.executable, help="an interpreter that has torch and transformers")
    parser.add_argument("--no-hf", action="store_true", help="leave Hugging Face out")
    parser.add_argument("--json", help="where to write the figures")
    gpu = parser.add_argument_group("with --device cuda")
    gpu.add_argument("--models", type=names, metavar="NAME,NAME", help="sizes of the report (default: all three)")
    gpu.add_argument("--width", type=int, default=512, help="beams kept after each level (default: 512)")
    gpu.add_argument("--constrained", action="store_true", help="also search among the items of a random catalogue")
    gpu.add_argument("--items", type=int, default=200_000, help="of that catalogue (default: 200000)")
    gpu.add_argument("--codebook", type=int, default=8192, help="codes of a level (default: 8192)")
    gpu.add_argument("--commit", help="what is measured (default: ask git)")
    parser.set_defaults(gpu_rows=None)
    args = parser.parse_args()
    if args.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            parser.error("found no GPU")
    return args


def _workloads(args: argparse.Namespace, work: Path) -> list[Workload]:
    chosen = []
    if "demo" in args.workloads:
        checkpoint = checkpoint_path(args)
        chosen.append(Workload("demo", checkpoint, bundled_requests(checkpoint, work / "demo.npz", 16), 64, [1, 16]))
    if WIDE in args.workloads:
        checkpoint = wide_checkpoint(work / "wide")
        chosen.append(Workload(WIDE, checkpoint, random_requests(checkpoint, work / "wide.npz", 4, 512), 128, [4]))
    return chosen


def _empty_process(work: Path, threads: int) -> int:
    """Peak bytes of a process that has loaded the smallest model."""
    checkpoint = tiny_checkpoint(work / "tiny")
    task = Task(
        str(checkpoint), str(random_requests(checkpoint, work / "tiny.npz", 1, 1)), "fp32", 1, threads, results=1
    )
    with started([("engine", task, sys.executable)]) as (process,):
        process.ask("run", batch=1)
        return int(process.ask("memory")["peak_bytes"])


def _compete(
    args: argparse.Namespace, workload: Workload, precision: str, threads: int, facts: dict[str, Any], empty: int
) -> tuple[dict[str, Any], list[Verdict]]:
    print(f"\n{workload.name}, {precision}, beam width {workload.beam_width}")
    task = Task(
        str(workload.checkpoint), str(workload.requests), precision, workload.beam_width, threads, workload.batches
    )
    entries = [("engine", task, sys.executable), ("torch_reference", task, sys.executable)]
    if workload.name == "demo" and precision == "fp32" and not args.no_hf:
        if _has_transformers(args.hf_python):
            entries.append(("hugging_face", task, args.hf_python))
        else:
            print("Hugging Face is left out: no transformers. Install the extra `bench`, or name --hf-python.")
    with started(entries) as processes:
        laps = race(processes, workload.batches, args.rounds)
        answers = {p.name: p.ask("answers", batch=max(workload.batches))["answers"] for p in processes}
        peaks = {p.name: int(p.ask("memory")["peak_bytes"]) for p in processes}
        versions = {p.name: p.facts["versions"] for p in processes}
        plan = int(processes[0].facts["plan_bytes"])
    rows = [
        [
            lap.contestant,
            lap.batch,
            f"{lap.least:.2f}",
            f"{lap.median:.2f}",
            f"{1e3 / lap.least:.1f}",
            byte_text(peaks[lap.contestant]),
        ]
        for lap in laps
    ]
    print(table(["contestant", "batch", "ms/request min", "median", "requests/s", "peak memory"], rows, "<>>>>>"))
    outcomes = _ratios(workload, precision, laps, facts)
    outcomes.append(verdicts.same_answers(workload.name, precision, answers["engine"], answers["torch_reference"]))
    if "hugging_face" in answers:
        legal = verdicts.legal_answers(workload.name, "hugging_face", answers["hugging_face"], task.catalogue()[1])
        outcomes.append(legal)
    outcomes.append(verdicts.memory(workload.name, precision, peaks["engine"], plan, empty))
    run = {
        "workload": workload.name,
        "precision": precision,
        "beam_width": workload.beam_width,
        "laps": [lap.to_dict() for lap in laps],
        "peak_bytes": peaks,
        "plan_bytes": plan,
        "versions": versions,
    }
    return run, outcomes


def _ratios(workload: Workload, precision: str, laps: list[Lap], facts: dict[str, Any]) -> list[Verdict]:
    ours = {lap.batch: lap.least for lap in laps if lap.contestant == "engine"}
    return [
        verdicts.speed(workload.name, precision, lap.batch, lap.contestant, lap.least / ours[lap.batch], facts)
        for lap in laps
        if lap.contestant != "engine"
    ]


def _has_transformers(python: str) -> bool:
    found = subprocess.run([python, "-c", "import torch, transformers"], capture_output=True, check=False)
    return found.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
