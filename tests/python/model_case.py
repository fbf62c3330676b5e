"""A random model with requests and tuples to score, by the reference and by the float64 oracle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from model_grid import random_items, random_requests
from oracle import Oracle
from plain_context import context_input, tokens_of
from plain_numbers import Numbers

from onerec_engine.config import OneRecV2Config
from onerec_engine.reference import ContextInput, Native, OneRecV2, random_state_dict, save_checkpoint, score_tuples

__all__ = ["Case", "summed"]

LENGTHS = (3, 0, 12, 1)


def summed(log_probabilities: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Scores of tuples [..., T], added in FP32 from left to right."""
    total = log_probabilities[..., 0].copy()
    for t in range(1, log_probabilities.shape[-1]):
        total += log_probabilities[..., t]
    return total


class Case:
    """Everything follows from the configuration and a seed.

    Attributes:
        model: the reference's.
        weights: the checkpoint's tensors.
        items: the catalogue.
        requests: as the engine takes them.
        tokens: their context tokens.
        tuples: int64 [requests, tuples, levels].
    """

    def __init__(
        self,
        config: OneRecV2Config,
        seed: int = 0,
        lengths: Sequence[int] = LENGTHS,
        tuples: int = 3,
        factors: Mapping[str, float] | None = None,
    ) -> None:
        """Makes the case; `factors` multiply weights by name."""
        torch.set_num_threads(1)
        self.config = config
        self.state = random_state_dict(config, seed=seed)
        for name, factor in (factors or {}).items():
            self.state[name] *= factor
        self.model = OneRecV2.from_state_dict(config, self.state)
        self.weights = {name: value.numpy() for name, value in self.state.items()}
        self.items = random_items(config.codebook_sizes, seed=seed)
        self.requests = random_requests(config, self.items, lengths, seed=seed)
        self.tokens = [tokens_of(request, config, self.items) for request in self.requests]
        rng = np.random.default_rng(seed)
        shape = (len(lengths), tuples)
        self.tuples = np.stack([rng.integers(size, size=shape) for size in config.codebook_sizes], -1)

    @property
    def context(self) -> ContextInput:
        """The requests' context for the reference."""
        return context_input(self.tokens, self.config)

    def reference(self, ops: Native | None = None) -> npt.NDArray[np.float32]:
        """The reference's log-probabilities of the tuples' codes [requests, tuples, levels]."""
        scores: npt.NDArray[np.float32] = score_tuples(
            self.model, self.context, torch.from_numpy(self.tuples), ops
        ).numpy()
        return scores

    def plain(self, numbers: Numbers | None = None) -> npt.NDArray[np.float64]:
        """The oracle's."""
        oracle = Oracle(self.config, self.weights, numbers)
        pairs = zip(self.tokens, self.tuples.tolist(), strict=True)
        return np.array([[oracle.score(tokens, ids) for ids in of] for tokens, of in pairs])

    def save(self, directory: Path) -> Path:
        """Writes the checkpoint, in FP32."""
        save_checkpoint(directory, self.config, self.state, self.items.ids, self.items.codes, torch.float32)
        return directory
