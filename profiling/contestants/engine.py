"""The engine itself; imports no torch."""

from __future__ import annotations

from typing import Any

import numpy as np

import onerec_engine
from contestants.protocol import Task, serve
from onerec_engine.cli.options import PRECISIONS
from onerec_engine.engine import Engine


class EngineContestant:
    def __init__(self, task: Task) -> None:
        self.task = task
        self.histories = task.histories()
        self.engine = Engine.from_checkpoint(
            task.checkpoint,
            device="cpu",
            threads=task.threads,
            max_batch=max(task.batches),
            max_beam_width=task.beam_width,
            max_context=max((len(history) for history in self.histories), default=1),
            **PRECISIONS[task.precision],
        )
        self.facts: dict[str, Any] = {
            "versions": {"onerec_engine": onerec_engine.__version__},
            "plan_bytes": sum(self.engine.memory_plan().values()),
        }

    def prepare(self, first: int, last: int) -> dict[str, np.ndarray]:
        chosen = self.histories[first:last]
        offsets = np.concatenate([[0], np.cumsum([len(history) for history in chosen])]).astype(np.int64)
        return {"item_ids": np.concatenate(chosen).astype(np.int64), "offsets": offsets}

    def generate(self, prepared: dict[str, np.ndarray]) -> Any:
        return self.engine.generate(prepared, beam_width=self.task.beam_width, num_results=self.task.results)

    def answers(self, generated: Any) -> list[dict[str, list[Any]]]:
        return [
            {
                "codes": np.asarray(result.semantic_ids).tolist(),
                "logprobs": np.asarray(result.logprobs, np.float64).tolist(),
            }
            for result in generated
        ]


if __name__ == "__main__":
    serve(EngineContestant)
