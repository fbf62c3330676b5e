"""The decoder block of OneRec-V2: cross-attention, self-attention, feed-forward network."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from onerec_engine.config import OneRecV2Config
from onerec_engine.reference.moe import FeedForward, MixtureOfExperts
from onerec_engine.reference.numerics import ContextKV, Native, RMSNorm, heads

__all__ = ["Block", "CrossAttention", "SelfAttention", "StepHistory"]


class StepHistory:
    """Self-attention keys and values of the earlier decode steps, and who descends from whom.

    Beams never move their keys: `ancestors` says which row of each earlier step a row descends from.

    Attributes:
        ancestors: int64 [R, t], for the current step's rows, their row at each earlier step.
        cache: per layer and earlier step, keys and values [R_s, G, d_head].
    """

    def __init__(self, layers: int) -> None:
        """Makes an empty history of `layers` layers."""
        self.ancestors: Tensor | None = None
        self.cache: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(layers)]

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Adds this step's keys and values [R, G, d_head]; returns each row's own, per step, oldest first."""
        earlier = self.cache[layer]
        rows = [] if self.ancestors is None else list(self.ancestors.unbind(1))
        keys = [k[r] for (k, _), r in zip(earlier, rows, strict=True)]
        values = [v[r] for (_, v), r in zip(earlier, rows, strict=True)]
        earlier.append((key, value))
        return [*keys, key], [*values, value]


class CrossAttention(nn.Module):
    """Lazy cross-attention: queries only; keys and values come ready from the context."""

    def __init__(self, config: OneRecV2Config, layer: int) -> None:
        """Makes the projections of block `layer`."""
        super().__init__()
        self.prefix = f"model.layers.{layer}.cross_attn"
        self.width, self.scale = config.head_dim, config.attention_scale
        self.group = config.context_kv_layer(layer)
        self.q_proj = nn.Linear(config.hidden_size, config.d_attention, bias=config.attention_bias)
        self.o_proj = nn.Linear(config.d_attention, config.hidden_size, bias=config.attention_bias)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else None

    def forward(self, x: Tensor, kv: ContextKV, ops: Native) -> Tensor:
        """Normed rows [B, R, d] -> the residual branch [B, R, d]."""
        (projected,) = ops.linear(f"{self.prefix}.q_proj", x, [self.q_proj])
        q = heads(ops.store(projected), self.width)
        if self.q_norm is not None:
            q = ops.store(ops.norm(q, self.q_norm))
        attended = ops.store(ops.cross_attention(q, kv, self.group, self.scale))
        (out,) = ops.linear(f"{self.prefix}.o_proj", attended, [self.o_proj])
        return out


class SelfAttention(nn.Module):
    """Causal self-attention over [BOS, s1, s2, ...]."""

    def __init__(self, config: OneRecV2Config, layer: int) -> None:
        """Makes the projections of block `layer`."""
        super().__init__()
        self.prefix = f"model.layers.{layer}.self_attn"
        self.layer = layer
        self.width, self.scale = config.head_dim, config.attention_scale
        kv_width, bias = config.num_key_value_heads * config.head_dim, config.attention_bias
        self.q_proj = nn.Linear(config.hidden_size, config.d_attention, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=bias)
        self.o_proj = nn.Linear(config.d_attention, config.hidden_size, bias=bias)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else None

    def forward(self, x: Tensor, history: StepHistory | None, ops: Native) -> Tensor:
        """Normed rows [B, R, d] -> the residual branch [B, R, d].

        Args:
            x: without a history, R is the T positions of one tuple; with one, the R beams of a step.
            history: the earlier steps of a decode, extended by this one.
            ops: the arithmetic.
        """
        projected = ops.linear(f"{self.prefix}.qkv_proj", x, [self.q_proj, self.k_proj, self.v_proj])
        q, k, v = (heads(ops.store(y), self.width) for y in projected)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = ops.store(ops.norm(q, self.q_norm)), ops.store(ops.norm(k, self.k_norm))
        if history is None:
            attended = ops.causal_attention(q, k, v, self.scale)
        else:
            keys, values = history.extend(self.layer, k.flatten(0, 1), v.flatten(0, 1))
            attended = ops.step_attention(q.flatten(0, 1), keys, values, self.scale)
            attended = attended.view(*x.shape[:2], attended.shape[-1])
        (out,) = ops.linear(f"{self.prefix}.o_proj", ops.store(attended), [self.o_proj])
        return out


class Block(nn.Module):
    """One decoder block, pre-norm with a residual on each part (OneRec-V2 report).

    In order: h = h + CrossAttn(RMSNorm(h), k, v); h = h + SelfAttn(RMSNorm(h)); h = h + FFN(RMSNorm(h)).
    """

    def __init__(self, config: OneRecV2Config, layer: int) -> None:
        """Makes block `layer`."""
        super().__init__()
        d, eps = config.hidden_size, config.rms_norm_eps
        prefix = f"model.layers.{layer}.mlp"
        self.cross_attn_norm, self.self_attn_norm, self.mlp_norm = RMSNorm(d, eps), RMSNorm(d, eps), RMSNorm(d, eps)
        self.cross_attn = CrossAttention(config, layer)
        self.self_attn = SelfAttention(config, layer)
        self.mlp: MixtureOfExperts | FeedForward
        if config.is_moe_layer(layer):
            self.mlp = MixtureOfExperts(config, prefix)
        else:
            self.mlp = FeedForward(prefix, d, config.intermediate_size, bias=config.mlp_bias)
        self.dropout = 0.0

    def forward(self, h: Tensor, kv: ContextKV, history: StepHistory | None, ops: Native) -> Tensor:
        """Rows [B, R, d] of the residual stream through the block."""
        h = ops.store(h + self._drop(self.cross_attn(ops.norm(h, self.cross_attn_norm), kv, ops)))
        h = ops.store(h + self._drop(self.self_attn(ops.norm(h, self.self_attn_norm), history, ops)))
        return ops.store(h + self._drop(self.mlp(ops.norm(h, self.mlp_norm), ops)))

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training) if self.dropout else x
