"""The tensors a checkpoint has to hold: docs/checkpoint_format.md as code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from onerec_engine.config import OneRecV2Config
from onerec_engine.pathway import Pathway

__all__ = ["DTYPE_BYTES", "QUANTIZED_DTYPE", "QUANTIZED_KINDS", "Kind", "TensorSpec", "expected_tensors"]

Kind = Literal["linear", "expert", "context", "head", "router", "table", "vector"]
"""What a tensor is, which decides how each precision stores it (docs/numerics.md):

* ``linear``: a weight of an attention projection or of a dense or shared feed-forward network
* ``expert``: a weight of a routed expert
* ``context``, ``head``, ``router``: the linears that no precision quantises
* ``table``: embeddings and positions
* ``vector``: norm gammas and biases, FP32 in every precision
"""

QUANTIZED_KINDS: frozenset[Kind] = frozenset({"linear", "expert"})
"""What a quantisation scheme may turn into codes and scales."""

QUANTIZED_DTYPE = "F8_E4M3"

DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1}
"""Dtypes of a checkpoint's tensors, by the names safetensors gives them, and their sizes in bytes."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor that a checkpoint has to hold.

    Attributes:
        name: its name.
        shape: its logical shape: nothing is padded on disk.
        kind: what it is.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind


def expected_tensors(config: OneRecV2Config) -> list[TensorSpec]:
    """All tensors of the model, each name once, in the order in which the model uses them.

    The companions ``X_scale`` of quantised weights are not among them: they follow from the scheme
    (`onerec_engine.quant`).
    """
    return list(_context(config)) + list(_decoder(config))


def _linear(name: str, outputs: int, inputs: int, kind: Kind, *, bias: bool) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.weight", (outputs, inputs), kind)
    if bias:
        yield TensorSpec(f"{name}.bias", (outputs,), "vector")


def _vector(name: str, length: int) -> TensorSpec:
    return TensorSpec(name, (length,), "vector")


def _context(c: OneRecV2Config) -> Iterator[TensorSpec]:
    if any(p.kind == "items" for p in c.pathways):
        for t, size in enumerate(c.codebook_sizes):
            yield TensorSpec(f"context.semantic_id_embeddings.{t}.weight", (size, c.embed_dim), "table")
    for pathway in c.pathways:
        yield from _pathway(c, pathway)
    for j in range(c.num_context_kv_layers):
        yield _vector(f"context.k_norms.{j}.weight", c.d_context_kv)
        if c.context_kv_split == 2:
            yield _vector(f"context.v_norms.{j}.weight", c.d_context_kv)


def _pathway(c: OneRecV2Config, p: Pathway) -> Iterator[TensorSpec]:
    prefix = f"context.pathways.{p.name}"
    for field in p.categorical_fields:
        shape = (field.num_embeddings, field.embedding_dim)
        yield TensorSpec(f"{prefix}.fields.{field.name}.weight", shape, "table")
    inputs = c.pathway_input_dim(p)
    for i, outputs in enumerate((*p.hidden_sizes, c.d_context)):
        yield from _linear(f"{prefix}.proj.{i}", outputs, inputs, "context", bias=p.bias)
        inputs = outputs
    if p.position_embedding != "none":
        yield TensorSpec(f"{prefix}.position_embedding.weight", (p.max_tokens, c.d_context), "table")


def _decoder(c: OneRecV2Config) -> Iterator[TensorSpec]:
    d = c.hidden_size
    yield TensorSpec("model.bos_embedding", (d,), "table")
    for t, size in enumerate(c.codebook_sizes[:-1]):
        yield TensorSpec(f"model.token_embeddings.{t}.weight", (size, d), "table")
    if c.decoder_position_embedding == "learned":
        yield TensorSpec("model.position_embedding.weight", (c.levels, d), "table")
    for layer in range(c.num_hidden_layers):
        yield from _attention(c, f"model.layers.{layer}")
        if c.is_moe_layer(layer):
            yield from _mixture(c, f"model.layers.{layer}.mlp")
        else:
            yield from _feed_forward(c, f"model.layers.{layer}.mlp", c.intermediate_size, "linear", bias=c.mlp_bias)
    for t, size in enumerate(c.codebook_sizes):
        yield _vector(f"model.output_norms.{t}.weight", d)
        yield from _linear(f"lm_heads.{t}", size, d, "head", bias=c.lm_head_bias)


def _attention(c: OneRecV2Config, layer: str) -> Iterator[TensorSpec]:
    """Both attentions of a block and the norms before them and before its feed-forward network."""
    d, bias = c.hidden_size, c.attention_bias
    kv = c.num_key_value_heads * c.head_dim
    yield _vector(f"{layer}.cross_attn_norm.weight", d)
    yield from _linear(f"{layer}.cross_attn.q_proj", c.d_attention, d, "linear", bias=bias)
    if c.qk_norm:
        yield _vector(f"{layer}.cross_attn.q_norm.weight", c.head_dim)
    yield from _linear(f"{layer}.cross_attn.o_proj", d, c.d_attention, "linear", bias=bias)
    yield _vector(f"{layer}.self_attn_norm.weight", d)
    yield from _linear(f"{layer}.self_attn.q_proj", c.d_attention, d, "linear", bias=bias)
    yield from _linear(f"{layer}.self_attn.k_proj", kv, d, "linear", bias=bias)
    yield from _linear(f"{layer}.self_attn.v_proj", kv, d, "linear", bias=bias)
    if c.qk_norm:
        yield _vector(f"{layer}.self_attn.q_norm.weight", c.head_dim)
        yield _vector(f"{layer}.self_attn.k_norm.weight", c.head_dim)
    yield from _linear(f"{layer}.self_attn.o_proj", d, c.d_attention, "linear", bias=bias)
    yield _vector(f"{layer}.mlp_norm.weight", d)


def _feed_forward(c: OneRecV2Config, name: str, width: int, kind: Kind, *, bias: bool) -> Iterator[TensorSpec]:
    yield from _linear(f"{name}.gate_proj", width, c.hidden_size, kind, bias=bias)
    yield from _linear(f"{name}.up_proj", width, c.hidden_size, kind, bias=bias)
    yield from _linear(f"{name}.down_proj", c.hidden_size, width, kind, bias=bias)


def _mixture(c: OneRecV2Config, name: str) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.gate.weight", (c.n_routed_experts, c.hidden_size), "router")
    yield _vector(f"{name}.gate.e_score_correction_bias", c.n_routed_experts)
    for e in range(c.n_routed_experts):
        yield from _feed_forward(c, f"{name}.experts.{e}", c.moe_intermediate_size, "expert", bias=False)
    if c.n_shared_experts:
        width = c.n_shared_experts * c.moe_intermediate_size
        yield from _feed_forward(c, f"{name}.shared_experts", width, "linear", bias=c.mlp_bias)
