"""What a contestant's process says and is told: JSON lines over stdin and stdout.

It is started with one argument, a JSON object (`Task`), answers ``{"ready": ...}``, and then each command:
``run`` -> seconds for all requests in batches of a size, ``answers`` -> the ranked tuples, ``memory`` -> peak bytes.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Task:
    """What to load and what will be asked.

    checkpoint: the model's directory, requests: an .npz with item_ids and offsets, batches: the batch sizes to come.
    """

    checkpoint: str
    requests: str
    precision: str
    beam_width: int
    threads: int
    batches: list[int] = field(default_factory=lambda: [1])
    results: int = 10

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def histories(self) -> list[np.ndarray]:
        with np.load(self.requests) as file:
            items, offsets = file["item_ids"], file["offsets"]
        return [items[a:b] for a, b in itertools.pairwise(offsets)]

    def catalogue(self) -> tuple[np.ndarray, np.ndarray]:
        with np.load(Path(self.checkpoint) / "catalogue.npz") as file:
            return file["item_ids"].astype(np.int64), file["semantic_ids"].astype(np.int64)


class Contestant(Protocol):
    """One way to answer."""

    facts: dict[str, Any]

    def prepare(self, first: int, last: int) -> Any:
        """Whatever may be made of requests [first, last) before the clock starts."""

    def generate(self, prepared: Any) -> Any:
        """The timed call."""

    def answers(self, generated: Any) -> list[dict[str, list[Any]]]:
        """Per request the ranked codes [n][levels] and logprobs [n]."""


def serve(make: Callable[[Task], Contestant]) -> None:
    """Runs a contestant's process until its stdin ends."""
    # Libraries may print; the conversation keeps the real stdout for itself.
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    task = Task(**json.loads(sys.argv[1]))
    count = len(task.histories())
    contestant = make(task)
    prepared = {
        size: [contestant.prepare(i, min(i + size, count)) for i in range(0, count, size)] for size in task.batches
    }

    def say(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")

    say({"ready": True, "requests": count, **contestant.facts})
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "run":
            started = time.perf_counter()
            for batch in prepared[command["batch"]]:
                contestant.generate(batch)
            say({"seconds": time.perf_counter() - started})
        elif command["do"] == "answers":
            found = []
            for batch in prepared[command["batch"]]:
                found += contestant.answers(contestant.generate(batch))
            say({"answers": found})
        elif command["do"] == "memory":
            say({"peak_bytes": peak_bytes()})


def peak_bytes() -> int:
    """The largest resident size of this process so far (Linux; it starts anew at exec)."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
