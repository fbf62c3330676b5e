"""OneRec-V2 as a module whose state dict has the checkpoint's names (docs/checkpoint_format.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from onerec_engine.config import OneRecV2Config
from onerec_engine.reference.context import ContextProcessor, PathwayProjection
from onerec_engine.reference.inputs import ContextInput
from onerec_engine.reference.layers import Block, StepHistory
from onerec_engine.reference.moe import MixtureOfExperts
from onerec_engine.reference.numerics import ContextKV, Modules, Native, RMSNorm

__all__ = ["Decoder", "OneRecV2"]


class Decoder(nn.Module):
    """Everything under ``model.``: input embeddings, blocks, output norms."""

    def __init__(self, config: OneRecV2Config) -> None:
        """Makes the decoder's weights."""
        super().__init__()
        d = config.hidden_size
        self.bos_embedding = nn.Parameter(torch.empty(d))
        self.token_embeddings = Modules[nn.Embedding](nn.Embedding(size, d) for size in config.codebook_sizes[:-1])
        if config.decoder_position_embedding == "learned":
            self.position_embedding = nn.Embedding(config.levels, d)
        self.layers = Modules[Block](Block(config, layer) for layer in range(config.num_hidden_layers))
        self.output_norms = Modules[RMSNorm](RMSNorm(d, config.rms_norm_eps) for _ in range(config.levels))


class OneRecV2(nn.Module):
    """The whole model. The arithmetic of every call is `ops`: native by default, or an `Emulated` precision."""

    def __init__(self, config: OneRecV2Config) -> None:
        """Makes the model; its weights are undefined until loaded or initialised."""
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_heads = Modules[nn.Linear](
            nn.Linear(config.hidden_size, size, bias=config.lm_head_bias) for size in config.codebook_sizes
        )
        self.context = ContextProcessor(config)
        self.dropout = 0.0

    @staticmethod
    def from_state_dict(config: OneRecV2Config, state_dict: Mapping[str, Tensor]) -> OneRecV2:
        """A model in evaluation mode with the given weights; names and shapes must be exactly the checkpoint's."""
        model = OneRecV2(config)
        model.load_state_dict(state_dict, strict=True)
        return model.eval()

    def set_dropout(self, p: float, context: float) -> None:
        """Sets the dropout of residual branches and decoder inputs, and that of the context's token embeddings."""
        self.dropout = p
        for block in self.model.layers:
            block.dropout = p
        for pathway in self.context.pathways.values():
            cast("PathwayProjection", pathway).dropout = context

    def moe_layers(self) -> list[MixtureOfExperts]:
        """The mixtures of experts, in layer order."""
        return [m for m in self.modules() if isinstance(m, MixtureOfExperts)]

    def context_kv(self, context: ContextInput, ops: Native | None = None) -> ContextKV:
        """The context's keys and values, computed once per request and shared by all its rows."""
        ops = ops or Native()
        ops.step = 0
        kv: ContextKV = self.context(context, ops)
        return kv

    def forward(self, context: ContextInput, semantic_ids: Tensor, ops: Native | None = None) -> list[Tensor]:
        """All levels in one causal pass, teacher-forced.

        Args:
            context: B requests.
            semantic_ids: int64 [B, T], the target of each request.
            ops: the arithmetic.

        Returns:
            Per level t, the logits of s_t given the context and s_1 .. s_{t-1}: float [B, V_t].
        """
        ops = ops or Native()
        kv = self.context_kv(context, ops)
        batch = semantic_ids.shape[0]
        rows = [self._input(0, None, (batch,), ops)]
        rows += [self._input(t, semantic_ids[:, t - 1], (batch,), ops) for t in range(1, self.config.levels)]
        h = torch.stack(rows, 1)
        if self.dropout:
            h = functional.dropout(h, self.dropout, self.training)
        for block in self.model.layers:
            h = block(h, kv, None, ops)
        return [self._logits(t, h[:, t], ops) for t in range(self.config.levels)]

    def step(
        self, step: int, codes: Tensor | None, shape: tuple[int, int], kv: ContextKV, history: StepHistory, ops: Native
    ) -> Tensor:
        """One decode step.

        Args:
            step: t, from 0.
            codes: int64 [B, W], the code of level t - 1 of each row; None at step 0 (BOS).
            shape: (B, W), rows of request b being b * W .. b * W + W - 1.
            kv: the context.
            history: earlier steps; `ancestors` [B * W, t] must be set for t > 0. Extended in place.
            ops: the arithmetic.

        Returns:
            Logits of level t [B, W, V_t].
        """
        ops.step = step
        h = self._input(step, codes, shape, ops)
        for block in self.model.layers:
            h = block(h, kv, history, ops)
        return self._logits(step, h, ops)

    def _input(self, step: int, codes: Tensor | None, shape: tuple[int, ...], ops: Native) -> Tensor:
        if codes is None:
            h = ops.table(self.model.bos_embedding).expand(*shape, -1)
        else:
            h = functional.embedding(codes, ops.table(self.model.token_embeddings.at(step - 1).weight))
        if self.config.decoder_position_embedding == "learned":
            h = ops.store(h + ops.table(self.model.position_embedding.weight)[step])
        return h

    def _logits(self, step: int, h: Tensor, ops: Native) -> Tensor:
        norm, head = self.model.output_norms.at(step), self.lm_heads.at(step)
        return ops.plain_linear(f"lm_heads.{step}", ops.norm(h, norm), head.weight, head.bias)
