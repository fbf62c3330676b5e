"""Beam search of docs/numerics.md, candidate by candidate, for one request; and the same answer by enumeration."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Beam", "Catalogue", "brute_force", "plain_beam", "to_items"]

Prefix = tuple[int, ...]
LogProbabilities = Callable[[Prefix], npt.NDArray[np.float32]]
"""The log-probabilities of all codes behind a prefix."""


@dataclass(frozen=True)
class Beam:
    """A kept prefix with its score; a dead one has the score -inf."""

    codes: Prefix
    score: float


@dataclass(frozen=True)
class Catalogue:
    """Items by id, and those that must not be returned."""

    codes: dict[int, Prefix]
    excluded: frozenset[int] = frozenset()

    def leads_to_an_item(self, prefix: Prefix) -> bool:
        """Whether an item that is not excluded begins with `prefix`."""
        return any(codes[: len(prefix)] == prefix for item, codes in self.codes.items() if item not in self.excluded)


def plain_beam(
    log_probabilities: LogProbabilities,
    codebook_sizes: Sequence[int],
    widths: Sequence[int],
    catalogue: Catalogue | None = None,
) -> list[Beam]:
    """The beams after the last level in rank order, dead ones last. With a catalogue the search is constrained."""
    beams = [Beam((), 0.0)]
    for size, width in zip(codebook_sizes, widths, strict=True):
        candidates = []
        for rank, beam in enumerate(beams):
            if beam.score == -np.inf:
                continue
            row = log_probabilities(beam.codes)
            for code in range(size):
                prefix = (*beam.codes, code)
                if catalogue is None or catalogue.leads_to_an_item(prefix):
                    score = float(np.float32(beam.score) + np.float32(row[code]))
                    candidates.append((-score, rank, code, prefix))
        candidates.sort()
        beams = [Beam(prefix, -negative) for negative, _, _, prefix in candidates[:width]]
        beams += [Beam((), -np.inf)] * (width - len(beams))
    return beams


def brute_force(
    score: Callable[[Prefix], float], codebook_sizes: Sequence[int], catalogue: Catalogue | None = None
) -> list[Beam]:
    """All tuples (of items that are not excluded), best first; equal scores in no particular order."""
    every = itertools.product(*(range(size) for size in codebook_sizes))
    legal = [codes for codes in every if catalogue is None or catalogue.leads_to_an_item(codes)]
    return sorted((Beam(codes, score(codes)) for codes in legal), key=lambda beam: -beam.score)


def to_items(beams: Collection[Beam], catalogue: Catalogue, num_results: int) -> list[tuple[int, float]]:
    """Item ids with their scores: the items of each beam in ascending order, without excluded ones."""
    found = []
    for beam in beams:
        if beam.score == -np.inf:
            continue
        items = sorted(item for item, codes in catalogue.codes.items() if codes == beam.codes)
        found += [(item, beam.score) for item in items if item not in catalogue.excluded]
    return found[:num_results]
