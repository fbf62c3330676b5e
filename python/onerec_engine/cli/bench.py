"""``onerec-engine bench``: how long requests take on this machine."""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING, Any

from onerec_engine.cli import options
from onerec_engine.cli.failure import UsageError
from onerec_engine.cli.machine import describe, machine
from onerec_engine.cli.output import byte_text, say, table, write_json
from onerec_engine.cli.progress import bar
from onerec_engine.cli.synthetic import random_requests

if TYPE_CHECKING:
    from onerec_engine.engine import Engine, Request

__all__ = ["add_arguments", "run"]


def _precisions(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in options.PRECISIONS]
    if unknown:
        raise argparse.ArgumentTypeError(f"got {', '.join(unknown)}, want some of {', '.join(options.PRECISIONS)}")
    return names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    options.add_checkpoint(parser)
    parser.add_argument("--batch-sizes", type=options.integers, default=[1, 16], metavar="N,N", help="(default: 1,16)")
    parser.add_argument("--beam-widths", type=options.integers, default=[64], metavar="N,N", help="(default: 64)")
    parser.add_argument(
        "--precisions",
        type=_precisions,
        default=["fp32", "bf16", "fp8"],
        metavar="NAME,NAME",
        help="(default: fp32,bf16,fp8)",
    )
    parser.add_argument("--context", type=options.positive, metavar="N", help="items per history (default: the most)")
    parser.add_argument("--rounds", type=options.positive, default=20, metavar="N", help="timed calls (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the random histories (default: 0)")
    options.add_engine(parser)
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Times every combination and prints a table."""
    if not args.batch_sizes or not args.beam_widths or min(*args.batch_sizes, *args.beam_widths, 1) < 1:
        raise UsageError("[arguments] batch sizes and beam widths are positive integers.")
    facts = machine()
    say(f"{describe(facts)}\ninstruction sets: {' '.join(facts['isa'])}", args.json)
    runs: list[dict[str, Any]] = []
    threads, device = 0, ""
    calls = len(args.batch_sizes) * len(args.beam_widths) * args.rounds
    for precision in args.precisions:
        limits = {"max_batch": max(args.batch_sizes), "max_beam_width": max(args.beam_widths)}
        with (
            options.open_engine(args, precision=precision, **limits) as engine,
            bar(calls, precision, "calls") as shown,
        ):
            threads, device = engine.threads, engine.device
            plan = sum(engine.memory_plan().values())
            requests = random_requests(engine, max(args.batch_sizes), args.context, args.seed)
            for width in args.beam_widths:
                for batch in args.batch_sizes:
                    times = _time(engine, requests[:batch], width, args.rounds, shown)
                    runs.append(_run(precision, batch, width, times) | {"memory_plan_bytes": plan})
    rows = [
        [
            *(r[name] for name in ("precision", "batch", "beam_width")),
            *(f"{r[name]:.2f}" for name in ("ms_per_request_median", "ms_per_request_min")),
            f"{r['requests_per_second']:.1f}",
            byte_text(r["memory_plan_bytes"]),
        ]
        for r in runs
    ]
    headers = ["precision", "batch", "beam width", "ms/request median", "min", "requests/s", "memory plan"]
    say(f"{threads} threads, {args.rounds} calls each\n\n{table(headers, rows, '<>>>>>>')}", args.json)
    if "fp8" in args.precisions and device == "cpu":
        say("\nFP8 on a CPU shows accuracy, not speed.", args.json)
    write_json(args.json, {"machine": facts, "threads": threads, "rounds": args.rounds, "runs": runs})
    return 0


def _time(engine: Engine, requests: list[Request], width: int, rounds: int, shown: Any) -> list[float]:
    """Seconds of each call, after one that is not counted."""
    times = []
    for turn in range(rounds + 1):
        started = time.perf_counter()
        engine.generate(requests, beam_width=width, num_results=min(10, width))
        if turn:
            times.append(time.perf_counter() - started)
            shown.update()
    return times


def _run(precision: str, batch: int, width: int, times: list[float]) -> dict[str, Any]:
    return {
        "precision": precision,
        "batch": batch,
        "beam_width": width,
        "ms_per_request_median": 1e3 * statistics.median(times) / batch,
        "ms_per_request_min": 1e3 * min(times) / batch,
        "requests_per_second": batch / statistics.median(times),
    }
