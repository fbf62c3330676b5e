"""What training adds: initial weights, the summed per-level loss, expert balancing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from onerec_engine.reference.model import OneRecV2

__all__ = ["balance_experts", "decay_groups", "init_weights", "sequence_loss"]


@torch.no_grad()
def init_weights(model: OneRecV2, seed: int, embedding_std: float = 0.1) -> None:
    """Initial weights for training: linears of variance 1 / inputs, output projections damped by the depth.

    Args:
        model: changed in place.
        seed: of the generator.
        embedding_std: standard deviation of the embeddings; position tables get a fifth of it.
    """
    generator = torch.Generator().manual_seed(seed)
    depth = 1.0 / math.sqrt(3.0 * model.config.num_hidden_layers)
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.fill_(1.0)
            continue
        if name.endswith(".bias"):
            weight.zero_()
            continue
        if "position_embedding" in name:
            std = 0.2 * embedding_std
        elif "embedding" in name or ".fields." in name:
            std = embedding_std
        else:
            std = 1.0 / math.sqrt(weight.shape[-1])
            if "o_proj" in name or "down_proj" in name:
                std *= depth
            elif name.startswith("lm_heads."):
                std *= 0.5
        weight.copy_(torch.randn(weight.shape, generator=generator) * std)


def sequence_loss(
    logits: Sequence[Tensor], targets: Tensor, *, label_smoothing: float = 0.0, weights: Tensor | None = None
) -> Tensor:
    """Cross-entropy summed over the levels, averaged over the batch.

    Args:
        logits: per level t, [B, V_t].
        targets: int64 [B, T].
        label_smoothing: as in `torch.nn.functional.cross_entropy`.
        weights: float [B], weight of each example, of mean 1.

    Returns:
        A scalar.
    """
    losses = [
        functional.cross_entropy(x.float(), targets[:, t], label_smoothing=label_smoothing, reduction="none")
        for t, x in enumerate(logits)
    ]
    total = torch.stack(losses).sum(0)
    return (total if weights is None else total * weights).mean()


def balance_experts(model: OneRecV2, rate: float) -> None:
    """Moves every selection bias by `rate` towards balanced load; call after each optimizer step."""
    for layer in model.moe_layers():
        layer.balance(rate)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Optimizer groups: matrices and tables decay, gains, biases and single rows do not."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
