"""A level of beam search: ours against log_softmax and torch.topk, with and without a catalogue."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from op_tensors import Beams
from torch import Tensor
from workloads import random_catalogue

from onerec_engine.config import OneRecV2Config
from op_bench.baselines import select
from op_bench.harness import Bench, Case, Contestant, Entry

__all__ = ["selection_cases"]

# Scores are sums of FP32; a survivor may score this much less than the last of the exact search.
SCORE_LIMIT = 2e-4
ITEMS = 200_000


@dataclass(frozen=True)
class Search:
    """Level `level` of `requests` searches: `beams` in, `keep` out."""

    level: int
    requests: int
    beams: int
    keep: int
    codebook: int

    @property
    def rows(self) -> int:
        return self.requests * self.beams


def selection_cases(
    bench: Bench, model: str, config: OneRecV2Config, rows: Sequence[int], width: int
) -> Iterator[Case]:
    """Level 0 where there are no more rows than requests of a full batch (32), level 1 beyond."""
    codebook = config.codebook_sizes[0]
    keep = min(width, codebook)
    for r in rows:
        beams = 1 if r <= 32 else min(width, r)
        search = Search(0 if beams == 1 else 1, r // beams, beams, keep, codebook)
        yield _case(bench, model, search, None)
        if search.level == 1:
            yield _case(bench, model, search, random_catalogue((codebook,) * 3, min(ITEMS, codebook**2)))


def _case(bench: Bench, model: str, search: Search, catalogue: np.ndarray | None) -> Case:
    device, rows, codebook = bench.device, search.rows, search.codebook
    moved = 4.0 * rows * codebook
    sets = bench.sets(moved)
    logits = [2.0 * torch.randn(rows, codebook, device=device) for _ in range(sets)]
    current = Beams.empty(rows, 3, search.level, device)
    current.scores.copy_(-torch.rand(rows, device=device) - 4.0)
    current.states.zero_()
    for ancestry in current.ancestry:
        ancestry.zero_()
    current.codes.zero_()
    allowed = None if catalogue is None else _start(catalogue, current, codebook)
    trie = None if catalogue is None else bench.ops.trie(catalogue, [codebook] * 3)

    @cache
    def exact() -> Tensor:
        """Scores of all candidates, float64 [requests, beams * codebook]."""
        scores = torch.log_softmax(logits[0].double(), -1) + current.scores.double().unsqueeze(-1)
        if allowed is not None:
            scores = scores.masked_fill(~allowed[current.states.long()], -torch.inf)
        return scores.view(search.requests, -1)

    def error(scores: Tensor, place: Tensor) -> float:
        """How far the chosen scores, best first, are from the exact search's; infinite if they are not theirs."""
        best = exact().topk(search.keep, dim=-1).values
        own = exact().gather(1, place)
        live = torch.isfinite(best)
        dead_ones = -1 - torch.arange(search.keep, device=device)
        distinct = torch.where(live, place, dead_ones).sort(-1).values.diff(dim=-1) != 0
        if not bool(distinct.all()) or not torch.equal(live, torch.isfinite(scores)):
            return float("inf")
        gaps = torch.stack([(scores.double() - best)[live].abs().max(), (scores.double() - own)[live].abs().max()])
        return float(gaps.nan_to_num(nan=torch.inf).max())

    def ours() -> Contestant:
        out = Beams.empty(search.requests * search.keep, 3, search.level + 1, device)
        status = torch.zeros(search.requests, dtype=torch.int32, device=device)
        constrained = torch.full((search.requests,), int(trie is not None), dtype=torch.uint8, device=device)
        row_offsets, next_offsets = (
            torch.arange(search.requests + 1, device=device, dtype=torch.int32) * size
            for size in (search.beams, search.keep)
        )

        def call(i: int) -> Callable[[], None]:
            return lambda: bench.ops.beam_select(
                search.level,
                logits[i],
                codebook=codebook,
                row_offsets=row_offsets,
                next_offsets=next_offsets,
                request_rows=search.beams,
                request_next=search.keep,
                current=current,
                following=out,
                status=status,
                constrained=constrained,
                trie=trie,
            )

        def measured() -> float:
            first = row_offsets[:-1].repeat_interleave(search.keep)
            parent = (out.ancestry[search.level] - first).long()
            place = parent * codebook + out.codes[:, search.level].long()
            shape = (search.requests, search.keep)
            return error(out.scores.view(shape), place.view(shape))

        return Contestant([call(i) for i in range(sets)], measured, SCORE_LIMIT)

    def theirs() -> Contestant:
        def call(i: int) -> tuple[Tensor, Tensor]:
            values = logits[i]
            if allowed is not None:
                # The log-sum-exp runs over all codes, so the mask comes behind it.
                total = torch.log_softmax(values, -1) + current.scores.unsqueeze(-1)
                total = total.masked_fill(~allowed[current.states.long()], -torch.inf)
                best, place = total.view(search.requests, -1).topk(search.keep, dim=-1)
                return best, place
            return select(values, current.scores, search.requests, search.keep)

        calls = [lambda i=i: call(i) for i in range(sets)]
        return Contestant(calls, lambda: error(*call(0)))

    name = "beam_select" + ("" if catalogue is None else f", {len(catalogue):,} items")
    shape = f"level {search.level}: {search.requests} x {search.beams} beams of {codebook}, keep {search.keep}"
    entries = [Entry("ours", ours, ours=True), Entry("torch log_softmax, topk", theirs)]
    return Case(model, name, rows, shape, 0.0, moved, "copy", entries)


def _start(catalogue: np.ndarray, current: Beams, codebook: int) -> Tensor:
    """Puts every beam on a random first code; returns which second codes follow each, bool [nodes, codebook]."""
    firsts, node = np.unique(catalogue[:, 0], return_inverse=True)
    device = current.scores.device
    allowed = torch.zeros(len(firsts), codebook, dtype=torch.bool, device=device)
    allowed[torch.from_numpy(node.astype(np.int64)).to(device), torch.from_numpy(catalogue[:, 1]).long().to(device)] = (
        True
    )
    states = torch.randint(0, len(firsts), current.states.shape, device=device)
    current.states.copy_(states)
    current.codes[:, 0] = torch.from_numpy(firsts).to(device)[states].to(current.codes.dtype)
    return allowed
