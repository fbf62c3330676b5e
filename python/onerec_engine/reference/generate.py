"""Beam search over semantic ids, batched over requests and beams (docs/numerics.md, "Beam search")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from onerec_engine.reference.inputs import ContextInput
from onerec_engine.reference.layers import StepHistory
from onerec_engine.reference.model import OneRecV2
from onerec_engine.reference.numerics import Native
from onerec_engine.reference.trie import Excluded, Trie

__all__ = ["BeamResult", "beam_search", "log_sum_exp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamResult:
    """What a beam search found, best first.

    Attributes:
        codes: int64 [B, W, T], the kept tuples.
        scores: float32 [B, W], their summed log-probabilities; -inf for dead beams.
        leaves: int64 [B, W], leaves of the trie, -1 for dead beams and tuples of no item; None without a trie.
        item_ids: int64 [B, num_results], -1 padded; None without a trie.
        item_ranks: int64 [B, num_results], which beam each item stands on; None without a trie.
        steps: per level, (parents int64 [B, W_t], codes int64 [B, W_t], scores float32 [B, W_t]).
    """

    codes: Tensor
    scores: Tensor
    leaves: Tensor | None
    item_ids: Tensor | None
    item_ranks: Tensor | None
    steps: tuple[tuple[Tensor, Tensor, Tensor], ...]

    @property
    def item_scores(self) -> Tensor | None:
        """Scores of `item_ids`, -inf where padded."""
        if self.item_ranks is None:
            return None
        found = self.scores.gather(1, self.item_ranks.clamp(min=0))
        return found.masked_fill(self.item_ranks < 0, -torch.inf)


def log_sum_exp(logits: Tensor) -> Tensor:
    """Computes max + log(sum(exp(logit - max))) over the last axis, float32 [...], the axis dropped."""
    top = logits.amax(-1, keepdim=True)
    return (top + (logits - top).exp().sum(-1, keepdim=True).log()).squeeze(-1)


@torch.inference_mode()
def beam_search(
    model: OneRecV2,
    context: ContextInput,
    *,
    beam_width: int | Sequence[int],
    trie: Trie | None = None,
    constrained: bool = True,
    excluded: Excluded | None = None,
    num_results: int | None = None,
    ops: Native | None = None,
    exact: bool | None = None,
) -> BeamResult:
    """Searches the most probable tuples of every request.

    Args:
        model: in evaluation mode.
        context: B requests on the model's device.
        beam_width: kept beams, one for all levels or one per level.
        trie: the catalogue; needed for a constrained search and to return items.
        constrained: follow only prefixes of items that are not excluded.
        excluded: items not to return; needs a trie.
        num_results: items to return, by default the last beam width.
        ops: the arithmetic, by default native.
        exact: order ties by parent rank, then code; by default when `ops` is exact. Otherwise ties fall as they may.
    """
    levels = model.config.levels
    widths = (beam_width,) * levels if isinstance(beam_width, int) else tuple(beam_width)
    if len(widths) != levels or min(widths) < 1:
        raise ValueError(f"[beam_search] got beam_width {beam_width!r}, want {levels} positive widths. Correct it.")
    if trie is None and (excluded is not None or num_results is not None):
        raise ValueError("[beam_search] got excluded items or num_results without a trie, want a trie. Pass one.")
    ops = ops or Native()
    exact = ops.exact if exact is None else exact
    kv = model.context_kv(context, ops)
    batch, device = kv.requests, kv.keys[0].device
    history = StepHistory(model.config.num_hidden_layers)
    guide = trie if constrained else None
    dead = trie.dead_nodes(excluded, batch) if trie is not None and excluded is not None and constrained else None
    score = torch.zeros(batch, 1, device=device)
    node = torch.zeros(batch, 1, dtype=torch.int64, device=device)
    codes: Tensor | None = None
    prefix = torch.empty(batch, 1, 0, dtype=torch.int64, device=device)
    offsets = torch.arange(batch, device=device)[:, None]
    steps = []
    for t, width in enumerate(widths):
        rows = score.shape[1]
        logits = model.step(t, codes, (batch, rows), kv, history, ops).float()
        normaliser = log_sum_exp(logits).unsqueeze(-1)
        if guide is None:
            size = logits.shape[-1]
            value, place = _best(_candidates(score, logits - normaliser), width, exact=exact)
            parent, codes = place // size, place % size
        else:
            child, code, exists = guide.children(t, node)
            if dead is not None:
                exists &= ~dead[t].gather(1, child.flatten(1)).view(child.shape)
            gathered = (logits.gather(2, code) - normaliser).masked_fill(~exists, -torch.inf)
            value, place = _best(_candidates(score, gathered), width, exact=exact)
            parent, codes = place // code.shape[2], code.flatten(1).gather(1, place)
            node = child.flatten(1).gather(1, place)
        lost = value == -torch.inf
        parent, codes, score = parent.masked_fill(lost, 0), codes.masked_fill(lost, 0), value
        if guide is not None:
            node = node.masked_fill(lost, 0)
        elif trie is not None:
            node = trie.walk(t, node.gather(1, parent), codes).masked_fill(lost, -1)
        steps.append((parent, codes, score))
        prefix = torch.cat([prefix.gather(1, parent[:, :, None].expand(-1, -1, t)), codes[:, :, None]], 2)
        parents = (offsets * rows + parent).flatten()
        lineage = [] if history.ancestors is None else [history.ancestors[parents]]
        history.ancestors = torch.cat([*lineage, parents[:, None]], 1)
    if trie is None:
        return BeamResult(codes=prefix, scores=score, leaves=None, item_ids=None, item_ranks=None, steps=tuple(steps))
    leaves = node.masked_fill(score == -torch.inf, -1)
    items, ranks = trie.expand(leaves, excluded, widths[-1] if num_results is None else num_results)
    return BeamResult(codes=prefix, scores=score, leaves=leaves, item_ids=items, item_ranks=ranks, steps=tuple(steps))


def _candidates(score: Tensor, log_probability: Tensor) -> Tensor:
    """Adds cum + log-probability of every candidate [B, W * C], ordered by parent rank, then code."""
    return (score.unsqueeze(-1) + log_probability).flatten(1)


def _best(candidates: Tensor, width: int, *, exact: bool) -> tuple[Tensor, Tensor]:
    """The `width` largest of each row and their places; padded with -inf at place 0 if there are fewer."""
    keep = min(width, candidates.shape[1])
    if exact:
        value, place = torch.sort(candidates, dim=1, descending=True, stable=True)
        value, place = value[:, :keep], place[:, :keep]
    else:
        value, place = torch.topk(candidates, keep, dim=1)
    if keep < width:
        value = functional.pad(value, (0, width - keep), value=-torch.inf)
        place = functional.pad(place, (0, width - keep))
    return value, place
