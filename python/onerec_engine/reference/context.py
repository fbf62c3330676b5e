"""The context processor: embeddings, one projection per pathway, normed keys and values."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from onerec_engine.config import CategoricalField, OneRecV2Config, Pathway
from onerec_engine.reference.inputs import ContextInput, PathwayInput
from onerec_engine.reference.numerics import ContextKV, Modules, Native, RMSNorm, heads

__all__ = ["ContextProcessor", "PathwayProjection"]


class PathwayProjection(nn.Module):
    """One pathway's field embeddings, linears and position table."""

    def __init__(self, config: OneRecV2Config, pathway: Pathway) -> None:
        """Makes the pathway's weights."""
        super().__init__()
        self.prefix = f"context.pathways.{pathway.name}.proj"
        self.fields_in_order = pathway.fields
        self.slope = pathway.negative_slope
        self.fields = nn.ModuleDict(
            {f.name: nn.Embedding(f.num_embeddings, f.embedding_dim) for f in pathway.categorical_fields}
        )
        widths = (config.pathway_input_dim(pathway), *pathway.hidden_sizes, config.d_context)
        self.proj = Modules[nn.Linear](
            nn.Linear(widths[i], widths[i + 1], bias=pathway.bias) for i in range(len(widths) - 1)
        )
        self.position_embedding: nn.Embedding | None = None
        if pathway.position_embedding != "none":
            self.position_embedding = nn.Embedding(pathway.max_tokens, config.d_context)
        self.dropout = 0.0

    def forward(self, tokens: PathwayInput, embedded: list[Tensor], ops: Native) -> Tensor:
        """Context rows C of the pathway's tokens.

        Args:
            tokens: the tokens [T_p].
            embedded: their semantic-id embeddings, one [T_p, embed_dim] per level; empty for ``static``.
            ops: the arithmetic.

        Returns:
            [T_p, d_context].
        """
        parts = list(embedded)
        n_categorical = n_dense = 0
        for field in self.fields_in_order:
            if isinstance(field, CategoricalField):
                table = ops.table(cast("nn.Embedding", self.fields[field.name]).weight)
                parts.append(functional.embedding(tokens.categorical[:, n_categorical], table))
                n_categorical += 1
            else:
                values = tokens.dense[:, n_dense : n_dense + field.dim]
                parts.append(ops.store(values.to(self.proj.at(0).weight.dtype)))
                n_dense += field.dim
        x = torch.cat(parts, -1)
        if self.dropout:
            x = functional.dropout(x, self.dropout, self.training)
        for i, layer in enumerate(self.proj):
            x = ops.plain_linear(f"{self.prefix}.{i}", x, layer.weight, layer.bias)
            if i + 1 < len(self.proj):
                x = functional.leaky_relu(x, self.slope)
            x = ops.store(x)
        if self.position_embedding is not None:
            x = ops.store(x + functional.embedding(tokens.positions, ops.table(self.position_embedding.weight)))
        return x


class ContextProcessor(nn.Module):
    """All pathways and the norms of the context keys and values."""

    def __init__(self, config: OneRecV2Config) -> None:
        """Makes the context's weights."""
        super().__init__()
        self.config = config
        if any(p.kind == "items" for p in config.pathways):
            self.semantic_id_embeddings = Modules[nn.Embedding](
                nn.Embedding(size, config.embed_dim) for size in config.codebook_sizes
            )
        self.pathways = nn.ModuleDict({p.name: PathwayProjection(config, p) for p in config.pathways})
        width, groups = config.d_context_kv, config.num_context_kv_layers
        self.k_norms = Modules[RMSNorm](RMSNorm(width, config.rms_norm_eps) for _ in range(groups))
        if config.context_kv_split == 2:
            self.v_norms = Modules[RMSNorm](RMSNorm(width, config.rms_norm_eps) for _ in range(groups))

    def rows(self, context: ContextInput, ops: Native) -> Tensor:
        """The packed context rows C [total, d_context]."""
        pieces = []
        for pathway, tokens in zip(self.config.pathways, context.pathways, strict=True):
            embedded = []
            if pathway.kind == "items":
                for t, table in enumerate(self.semantic_id_embeddings):
                    embedded.append(functional.embedding(tokens.codes[:, t], ops.table(table.weight)))
            pieces.append(self.pathways[pathway.name](tokens, embedded, ops))
        if len(pieces) == 1:
            packed = pieces[0]
            destination = context.pathways[0].rows
        else:
            packed = torch.cat(pieces)
            destination = torch.cat([p.rows for p in context.pathways])
        return torch.zeros_like(packed).index_copy(0, destination, packed)

    def forward(self, context: ContextInput, ops: Native) -> ContextKV:
        """Keys k_j = RMSNorm(C_{j S_kv}) and values v_j = RMSNorm(C_{j S_kv + 1}), or v_j = k_j, padded."""
        packed = self.rows(context, ops)
        batch, longest = context.requests, max(context.longest, 1)
        offsets = context.context_offsets
        lengths = offsets[1:] - offsets[:-1]
        tokens = packed.shape[0]
        full = tokens == batch * longest
        request = torch.repeat_interleave(torch.arange(batch, device=offsets.device), lengths, output_size=tokens)
        place = torch.arange(tokens, device=offsets.device) + request * longest - offsets[request]
        mask: Tensor | None = None
        present: Tensor | None = None
        if not full:
            visible = torch.ones_like(place, dtype=torch.bool)
            mask = torch.zeros(batch * longest, dtype=torch.bool, device=offsets.device).index_copy(0, place, visible)
            mask = mask.view(batch, longest)
            present = lengths > 0
            mask = mask | ~present[:, None]
        split, width = self.config.context_kv_split, self.config.d_context_kv

        def padded(slice_index: int, norm: RMSNorm) -> Tensor:
            part = ops.store(ops.norm(packed[:, slice_index * width : (slice_index + 1) * width], norm))
            if not full:
                part = part.new_zeros(batch * longest, width).index_copy(0, place, part)
            return heads(part.view(batch, longest, width), self.config.head_dim).transpose(1, 2)

        keys = tuple(padded(j * split, norm) for j, norm in enumerate(self.k_norms))
        values = keys if split == 1 else tuple(padded(2 * j + 1, norm) for j, norm in enumerate(self.v_norms))
        return ContextKV(keys, values, mask, present)
