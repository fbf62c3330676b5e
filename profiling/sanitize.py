"""Runs the C++ tests of the ops on a GPU under compute-sanitizer: memcheck, racecheck, synccheck, initcheck.

    python profiling/sanitize.py --bin build/cuda-tests/bin

Prints one line per tool and test; the exit code is 1 if anything was found, failed, or could not be run in time.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from onerec_engine.cli.output import table

__all__ = ["TOOLS", "Outcome", "device_tests", "judge"]

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
# Tests that touch no device.
HOST_ONLY = (
    "attention_layout",
    "attention_schedule",
    "batch",
    "block_matmul",
    "direct_tiles",
    "float8",
    "gemm",
    "gemm_select",
    "grouped_select",
    "item_trie",
    "split_tiles",
    "static_scale",
    "thread_pool",
)
SOURCES = Path(__file__).resolve().parent.parent / "tests/cpp"
FOUND = 86  # the exit code that compute-sanitizer is told to give


@dataclass(frozen=True)
class Outcome:
    """What a tool said of a test."""

    tool: str
    test: str
    result: str
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        return self.result == "clean"


def device_tests() -> list[str]:
    """The names of the C++ tests of ops and engine, without test_."""
    names = [source.stem.removeprefix("test_") for source in sorted(SOURCES.glob("test_*.cpp"))]
    return [name for name in names if name not in HOST_ONLY]


def judge(code: int, text: str) -> str:
    """A result from an exit code and the output of compute-sanitizer with the test inside."""
    summaries = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", text)
    if code == FOUND or any(not summary.startswith("0 ") for summary in summaries):
        return summaries[-1] if summaries else "findings"
    if code != 0:
        failed = re.findall(r"\[  FAILED  \] (\d+ tests?)", text)
        return f"test failed: {failed[-1] if failed else f'exit code {code}'}"
    if not summaries:
        return "no summary: did the tool run?"
    return "clean"


def main() -> int:
    args = _arguments()
    sanitizer = shutil.which(args.sanitizer)
    if sanitizer is None:
        print(f"[sanitize] found no {args.sanitizer}. It comes with the CUDA toolkit.", file=sys.stderr)
        return 1
    deadline = time.monotonic() + args.budget

    def run(case: tuple[str, str]) -> Outcome:
        outcome = _run(args, sanitizer, *case, deadline)
        print(f"{outcome.tool} {outcome.test}: {outcome.result} ({outcome.seconds:.0f} s)", file=sys.stderr, flush=True)
        return outcome

    with ThreadPoolExecutor(args.jobs) as pool:
        outcomes = list(pool.map(run, product(args.tools, args.tests)))
    rows = [(o.tool, o.test, o.result, f"{o.seconds:.1f}") for o in outcomes]
    print(table(["tool", "test", "result", "s"], rows, "<<<>"))
    dirty = [outcome for outcome in outcomes if not outcome.clean]
    print(f"\n{len(outcomes) - len(dirty)} of {len(outcomes)} clean")
    return 1 if dirty else 0


def _run(args: argparse.Namespace, sanitizer: str, tool: str, test: str, deadline: float) -> Outcome:
    binary = Path(args.bin) / f"test_{test}"
    if not binary.is_file():
        return Outcome(tool, test, f"missing: {binary}")
    left = deadline - time.monotonic()
    if left <= 0:
        return Outcome(tool, test, "not run: out of time")
    command = [sanitizer, "--tool", tool, "--error-exitcode", str(FOUND), str(binary), f"--gtest_filter={args.filter}"]
    started = time.monotonic()
    # A session of its own: the sanitizer starts the test as its child, which would outlive it and keep the GPU busy.
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "ONEREC_TEST_DEVICE": "cuda"},
        start_new_session=True,
    ) as running:
        try:
            text, _ = running.communicate(timeout=min(left, args.timeout))
            result = judge(running.returncode, text)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            text, _ = running.communicate()
            result = "timed out"
    if args.logs:
        Path(args.logs).mkdir(parents=True, exist_ok=True)
        (Path(args.logs) / f"{tool}_{test}.txt").write_text(text, encoding="utf-8")
    if result != "clean":
        print("\n".join(text.splitlines()[:60]), file=sys.stderr)
    return Outcome(tool, test, result, time.monotonic() - started)


def _arguments() -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="build/cuda-tests/bin", help="the tests' folder")
    parser.add_argument("--tools", type=names, default=list(TOOLS), help=f"of {','.join(TOOLS)}")
    parser.add_argument("--tests", type=names, default=device_tests(), help="names without test_ (default: all ops)")
    parser.add_argument("--filter", default="*", help="of cases, as --gtest_filter takes it")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds for everything (default: 540)")
    parser.add_argument("--timeout", type=float, default=180.0, help="seconds for one test (default: 180)")
    parser.add_argument("--jobs", type=int, default=1, help="tests that run side by side (default: 1)")
    parser.add_argument("--sanitizer", default="compute-sanitizer", help="the program")
    parser.add_argument("--logs", help="a folder for each run's output")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
