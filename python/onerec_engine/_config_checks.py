"""What a configuration has to satisfy. Every check survives values of any JSON type."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeGuard

from onerec_engine._json import quote

if TYPE_CHECKING:
    from onerec_engine.config import OneRecV2Config
    from onerec_engine.pathway import Pathway

__all__ = ["MAX_CODEBOOK_SIZE", "MAX_LEVELS", "MAX_TENSORS", "RESERVED_SOURCES", "config_problems", "is_int"]

MAX_LEVELS = 8
MAX_CODEBOOK_SIZE = 65_536
MAX_TENSORS = 1_000_000
"""Tensors of one checkpoint: the largest model of the paper's family has some 10,000."""

RESERVED_SOURCES = frozenset(
    {"item_ids", "offsets", "beam_width", "num_results", "constrained", "exclude", "exclude_history", "request_id"}
)
"""Names that mean something else in a batch given as a dict of arrays."""

_MAX_DIM = 1 << 20
_MAX_ROWS = (1 << 31) - 1


def is_int(value: object, low: int, high: int) -> TypeGuard[int]:
    """Whether `value` is an integer (no bool) in [low, high]."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value.isascii() and value.replace("_", "a").isalnum() and len(value) <= 128


def _is_number(value: object, limit: float) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return abs(value) < limit and math.isfinite(value)


class _Findings(list[str]):
    """Problems found, one phrase each."""

    def want_int(self, name: str, value: object, low: int, high: int) -> bool:
        if not is_int(value, low, high):
            self.append(f"{name} is {quote(value)}, want an integer in [{low}, {high}]")
            return False
        return True

    def want_one_of(self, name: str, value: object, choices: tuple[object, ...]) -> None:
        if not isinstance(value, (str, bool)) or value not in choices:
            self.append(f"{name} is {quote(value)}, want {' or '.join(map(repr, choices))}")

    def want_multiple(self, name: str, value: int, divisor: int) -> None:
        if value % divisor:
            self.append(f"{name} is {value}, want a multiple of {divisor}")


def config_problems(c: OneRecV2Config) -> list[str]:
    """Everything wrong with the configuration, one phrase each; empty for a sound one."""
    found = _Findings()
    if not 1 <= len(c.codebook_sizes) <= MAX_LEVELS:
        found.append(f"codebook_sizes has {len(c.codebook_sizes)} levels, want 1 to {MAX_LEVELS}")
    for i, size in enumerate(c.codebook_sizes):
        found.want_int(f"codebook_sizes[{i}]", size, 1, MAX_CODEBOOK_SIZE)
    sound = _dimension_problems(c, found)
    for name in ("rms_norm_eps", "attention_scale", "routed_scaling_factor"):
        value = getattr(c, name)
        if not _is_number(value, 1e6) or value <= 0:
            found.append(f"{name} is {quote(value)}, want a positive number below 1e6")
    for name in ("qk_norm", "attention_bias", "mlp_bias", "lm_head_bias", "norm_topk_prob"):
        if not isinstance(getattr(c, name), bool):
            found.append(f"{name} is {quote(getattr(c, name))}, want true or false")
    found.want_one_of("decoder_position_embedding", c.decoder_position_embedding, ("none", "learned"))
    if not isinstance(c.torch_dtype, str):
        found.append(f"torch_dtype is {quote(c.torch_dtype)}, want a string")
    sound &= _moe_problems(c, found)
    _pathway_problems(c, found)
    if sound:
        moe_layers = max(c.num_hidden_layers - c.first_k_dense_replace, 0) if c.n_routed_experts else 0
        if (tensors := 3 * moe_layers * c.n_routed_experts) > MAX_TENSORS:
            found.append(f"the experts make {tensors} tensors, want at most {MAX_TENSORS}")
    return found


def _dimension_problems(c: OneRecV2Config, found: _Findings) -> bool:
    """Appends what is wrong with widths and counts; returns whether each of them is an integer in range."""
    sound = found.want_int("num_hidden_layers", c.num_hidden_layers, 1, 1024)
    for name in ("hidden_size", "num_attention_heads", "head_dim", "intermediate_size", "embed_dim"):
        sound &= found.want_int(name, getattr(c, name), 1, _MAX_DIM)
    sound &= found.want_int("num_key_value_heads", c.num_key_value_heads, 1, 65_536)
    sound &= found.want_int("num_context_kv_heads", c.num_context_kv_heads, 1, 65_536)
    sound &= found.want_int("num_context_kv_layers", c.num_context_kv_layers, 1, 1024)
    sound &= found.want_int("context_kv_split", c.context_kv_split, 1, 2)
    if not sound:
        return False
    for name in ("num_key_value_heads", "num_context_kv_heads"):
        if c.num_attention_heads % getattr(c, name):
            found.append(f"num_attention_heads is no multiple of {name}")
    if c.num_context_kv_layers > c.num_hidden_layers:
        found.append("num_context_kv_layers exceeds num_hidden_layers")
    for name in ("hidden_size", "head_dim", "intermediate_size"):
        found.want_multiple(name, getattr(c, name), 16)
    if c.d_attention > _MAX_DIM or c.d_context > _MAX_DIM:
        found.append(f"the attention or context width exceeds {_MAX_DIM}")
    return True


def _moe_problems(c: OneRecV2Config, found: _Findings) -> bool:
    names = ("n_routed_experts", "n_shared_experts", "num_experts_per_tok", "moe_intermediate_size")
    sound = found.want_int("first_k_dense_replace", c.first_k_dense_replace, 0, _MAX_DIM)
    for name in names:
        sound &= found.want_int(name, getattr(c, name), 0, _MAX_DIM)
    found.want_one_of("scoring_func", c.scoring_func, ("sigmoid", "softmax"))
    if not sound or c.n_routed_experts == 0:
        return sound
    found.want_int("n_routed_experts", c.n_routed_experts, 1, 4096)
    found.want_int("num_experts_per_tok", c.num_experts_per_tok, 1, min(c.n_routed_experts, 32))
    if found.want_int("moe_intermediate_size", c.moe_intermediate_size, 16, _MAX_DIM):
        found.want_multiple("moe_intermediate_size", c.moe_intermediate_size, 16)
    if c.n_shared_experts * c.moe_intermediate_size > _MAX_DIM:
        found.append(f"the shared experts' width exceeds {_MAX_DIM}")
    return True


def _pathway_problems(c: OneRecV2Config, found: _Findings) -> None:
    if not 1 <= len(c.pathways) <= 64:
        found.append(f"pathways has {len(c.pathways)} entries, want 1 to 64")
    names = [p.name for p in c.pathways if isinstance(p.name, str)]
    if len(set(names)) != len(names):
        found.append(f"pathway names {quote(names)} are not unique")
    for p in c.pathways:
        _one_pathway_problems(p, found)
    sources = {p.source for p in c.pathways if p.kind == "items" and isinstance(p.source, str)}
    for p in c.pathways:
        if isinstance(p.name, str) and p.name in sources and any(f.name == "offsets" for f in p.fields):
            found.append(f"pathway {quote(p.name)}: rename its field 'offsets', which is a name's suffix in a batch")


def _one_pathway_problems(p: Pathway, found: _Findings) -> None:
    where = f"pathway {quote(p.name)}"
    if not _is_name(p.name):
        found.append(f"{where}: want a name of letters, digits and underscores")
    found.want_one_of(f"{where}: kind", p.kind, ("items", "static"))
    if found.want_int(f"{where}: max_tokens", p.max_tokens, 1, _MAX_DIM) and p.kind == "static" and p.max_tokens != 1:
        found.append(f"{where}: max_tokens is {p.max_tokens}, want 1 for a static pathway")
    if p.kind == "items" and (not _is_name(p.source) or p.source in RESERVED_SOURCES):
        found.append(f"{where}: source is {quote(p.source)}, want 'history' or a feature's name")
    found.want_one_of(f"{where}: position_embedding", p.position_embedding, ("recency", "absolute", "none"))
    if not _is_number(p.negative_slope, 1e6):
        found.append(f"{where}: negative_slope is {quote(p.negative_slope)}, want a number")
    if not isinstance(p.bias, bool):
        found.append(f"{where}: bias is {quote(p.bias)}, want true or false")
    for i, size in enumerate(p.hidden_sizes):
        found.want_int(f"{where}: hidden_sizes[{i}]", size, 1, _MAX_DIM)
    fields = [f.name for f in p.fields if isinstance(f.name, str)]
    if len(set(fields)) != len(fields):
        found.append(f"{where}: field names {quote(fields)} are not unique")
    for f in p.fields:
        name = f"{where}: field {quote(f.name)}"
        if not _is_name(f.name):
            found.append(f"{name}: want a name of letters, digits and underscores")
        if f.kind == "categorical":
            found.want_int(f"{name}: num_embeddings", f.num_embeddings, 1, _MAX_ROWS)
            found.want_int(f"{name}: embedding_dim", f.embedding_dim, 1, _MAX_DIM)
        else:
            found.want_int(f"{name}: dim", f.dim, 1, _MAX_DIM)
    if p.kind == "static" and not p.fields:
        found.append(f"{where}: a static pathway needs at least one field")
