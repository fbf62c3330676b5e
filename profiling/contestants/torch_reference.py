"""The PyTorch reference with PyTorch's own kernels: the same beams and dtype, the context shared by all beams.

The context's index tensors are made before the clock starts; the engine's time includes making them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from contestants.protocol import Task, serve
from onerec_engine.reference import BeamResult, ContextInput, PathwayInput, Trie, beam_search, load_model


class TorchReference:
    def __init__(self, task: Task) -> None:
        torch.set_num_threads(task.threads)
        self.task = task
        self.histories = task.histories()
        self.model = load_model(task.checkpoint, {"fp32": torch.float32, "bf16": torch.bfloat16}[task.precision])
        pathways = self.model.config.pathways
        if len(pathways) != 1 or pathways[0].kind != "items" or pathways[0].fields or pathways[0].source != "history":
            raise SystemExit("this contestant packs one pathway of history items without further fields")
        self.pathway = pathways[0]
        item_ids, self.codes = task.catalogue()
        self.trie = Trie.build(item_ids, self.codes)
        self.row_of = np.full(int(item_ids.max()) + 1, -1, np.int64)
        self.row_of[item_ids] = np.arange(item_ids.size)
        self.facts: dict[str, Any] = {"versions": {"torch": torch.__version__}}

    def prepare(self, first: int, last: int) -> ContextInput:
        kept = [self.row_of[history][-self.pathway.max_tokens :] for history in self.histories[first:last]]
        lengths = np.array([len(rows) for rows in kept])
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        owner = np.repeat(np.arange(len(kept)), lengths)
        place = np.arange(offsets[-1])
        newest_first = self.pathway.position_embedding == "recency"
        positions = offsets[owner + 1] - 1 - place if newest_first else place - offsets[owner]
        tokens = PathwayInput.of_items(
            torch.from_numpy(self.codes[np.concatenate(kept)]), torch.from_numpy(positions), torch.from_numpy(place)
        )
        return ContextInput(
            pathways=(tokens,), context_offsets=torch.from_numpy(offsets), max_tokens=int(lengths.max(initial=0))
        )

    def generate(self, prepared: ContextInput) -> BeamResult:
        return beam_search(
            self.model, prepared, beam_width=self.task.beam_width, trie=self.trie, num_results=self.task.results
        )

    def answers(self, generated: BeamResult) -> list[dict[str, list[Any]]]:
        codes, scores = generated.codes[:, : self.task.results], generated.scores[:, : self.task.results]
        return [{"codes": c.tolist(), "logprobs": s.tolist()} for c, s in zip(codes, scores, strict=True)]


if __name__ == "__main__":
    serve(TorchReference)
