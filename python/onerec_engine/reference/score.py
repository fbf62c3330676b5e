"""Log-probabilities of given tuples, teacher-forced."""

from __future__ import annotations

import torch
from torch import Tensor

from onerec_engine.reference.generate import log_sum_exp
from onerec_engine.reference.inputs import ContextInput
from onerec_engine.reference.layers import StepHistory
from onerec_engine.reference.model import OneRecV2
from onerec_engine.reference.numerics import Native

__all__ = ["score_tuples"]


@torch.inference_mode()
def score_tuples(model: OneRecV2, context: ContextInput, semantic_ids: Tensor, ops: Native | None = None) -> Tensor:
    """Scores n tuples of every request, step by step as a beam search computes them.

    Step 0 has one row per request; every later step one row per tuple.

    Args:
        model: in evaluation mode.
        context: B requests.
        semantic_ids: int64 [B, n, T].
        ops: the arithmetic, by default native.

    Returns:
        float32 [B, n, T]: log p(s_t | context, s_1 .. s_{t-1}); their sum from left to right is a beam's score.
    """
    ops = ops or Native()
    batch, count, levels = semantic_ids.shape
    kv = model.context_kv(context, ops)
    history = StepHistory(model.config.num_hidden_layers)
    request = torch.arange(batch, device=semantic_ids.device).repeat_interleave(count)
    own = torch.arange(batch * count, device=semantic_ids.device)
    scores = []
    for t in range(levels):
        rows = count if t else 1
        if t:
            history.ancestors = torch.stack([request] + [own] * (t - 1), 1)
        codes = semantic_ids[:, :, t - 1] if t else None
        logits = model.step(t, codes, (batch, rows), kv, history, ops).float()
        log_probability = logits - log_sum_exp(logits).unsqueeze(-1)
        scores.append(log_probability.expand(-1, count, -1).gather(2, semantic_ids[:, :, t, None]).squeeze(2))
    return torch.stack(scores, 2)
