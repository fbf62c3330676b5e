"""Hugging Face `generate` on a T5 of the checkpoint's width with a prefix function over the same catalogue.

The weights are random: what is compared is the time of a constrained beam search of the same width over the same items.
An item is as many tokens as it has levels, in the encoder too, which is how TIGER feeds a T5.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from contestants.protocol import Task, serve

_PAD = 0


class HuggingFaceT5:
    def __init__(self, task: Task) -> None:
        torch.set_num_threads(task.threads)
        torch.manual_seed(0)
        self.task = task
        self.histories = task.histories()
        config = json.loads((Path(task.checkpoint) / "config.json").read_text(encoding="utf-8"))
        sizes = config["codebook_sizes"]
        self.first_token = np.concatenate([[2], 2 + np.cumsum(sizes)[:-1]])
        self.max_items = max(pathway["max_tokens"] for pathway in config["pathways"])
        width, heads = config["hidden_size"], config["num_attention_heads"]
        self.model = transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                vocab_size=2 + sum(sizes),
                d_model=width,
                d_kv=width // heads,
                d_ff=4 * width,
                num_layers=4,
                num_decoder_layers=4,
                num_heads=heads,
                pad_token_id=_PAD,
                eos_token_id=1,
                decoder_start_token_id=_PAD,
            )
        ).eval()
        item_ids, codes = task.catalogue()
        self.tokens_of = dict(zip(item_ids.tolist(), (codes + self.first_token).tolist(), strict=True))
        continuations: dict[tuple[int, ...], set[int]] = {}
        for tokens in self.tokens_of.values():
            for level, token in enumerate(tokens):
                continuations.setdefault(tuple(tokens[:level]), set()).add(token)
        self.allowed = {prefix: sorted(following) for prefix, following in continuations.items()}
        self.facts: dict[str, Any] = {
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__}
        }

    def prepare(self, first: int, last: int) -> dict[str, torch.Tensor]:
        rows = [
            [token for item in history[-self.max_items :].tolist() for token in self.tokens_of[item]]
            for history in self.histories[first:last]
        ]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [_PAD] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": mask}

    @torch.inference_mode()
    def generate(self, prepared: dict[str, torch.Tensor]) -> Any:
        return self.model.generate(
            **prepared,
            num_beams=self.task.beam_width,
            num_return_sequences=self.task.results,
            max_new_tokens=len(self.first_token),
            do_sample=False,
            length_penalty=0.0,
            return_dict_in_generate=True,
            output_scores=True,
            prefix_allowed_tokens_fn=lambda _, tokens: self.allowed[tuple(tokens[1:].tolist())],
        )

    def answers(self, generated: Any) -> list[dict[str, list[Any]]]:
        codes = (generated.sequences[:, 1:].numpy() - self.first_token).reshape(
            -1, self.task.results, len(self.first_token)
        )
        scores = generated.sequences_scores.numpy().reshape(-1, self.task.results)
        return [{"codes": c.tolist(), "logprobs": s.tolist()} for c, s in zip(codes, scores, strict=True)]


if __name__ == "__main__":
    serve(HuggingFaceT5)
