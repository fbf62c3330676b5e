"""Contestants in processes of their own, asked in turns, round after round."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from contestants.protocol import Task

HERE = Path(__file__).resolve().parent


class Process:
    """A contestant's process, from its start until it is closed."""

    def __init__(self, module: str, task: Task, python: str = sys.executable) -> None:
        threads = str(task.threads)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
        }
        self.name = module
        self._process = subprocess.Popen(
            [python, "-m", f"contestants.{module}", task.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.facts = self._read()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Sends a command and waits for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"contestant {self.name} ended with code {self._process.wait()}; its message is above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()


@dataclass
class Lap:
    """One contestant at one batch size: milliseconds per request in every round."""

    contestant: str
    batch: int
    rounds: list[float] = field(default_factory=list)

    @property
    def least(self) -> float:
        return min(self.rounds)

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def to_dict(self) -> dict[str, Any]:
        return {
            "contestant": self.contestant,
            "batch": self.batch,
            "ms_per_request_min": self.least,
            "ms_per_request_median": self.median,
            "requests_per_second": 1e3 / self.least,
            "rounds": self.rounds,
        }


@contextmanager
def started(entries: Sequence[tuple[str, Task, str]]) -> Iterator[list[Process]]:
    """Starts contestants (module, task, interpreter) one after another; all are closed at the end."""
    with ExitStack() as stack:
        yield [stack.enter_context(Process(*entry)) for entry in entries]


def race(processes: Sequence[Process], batches: Sequence[int], rounds: int) -> list[Lap]:
    """Times every contestant at every batch size, one warm-up round first, the order turning with each round."""
    laps = {(p.name, batch): Lap(p.name, batch) for p in processes for batch in batches}
    for turn in range(rounds + 1):
        shift = turn % len(processes)
        for process in [*processes[shift:], *processes[:shift]]:
            for batch in batches:
                # The threads of the one before may still be spinning.
                time.sleep(0.05)
                seconds = process.ask("run", batch=batch)["seconds"]
                if turn:
                    laps[process.name, batch].rounds.append(1e3 * seconds / process.facts["requests"])
        print(f"  round {turn} of {rounds}" if turn else "  warm-up", file=sys.stderr)
    return list(laps.values())
