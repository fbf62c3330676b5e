"""OneRec-V2 in float64 NumPy, one row and one token at a time, written from docs/: the reference's oracle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from plain_context import Token
from plain_numbers import Array, Normed, Numbers, code_scale

from onerec_engine.config import CategoricalField, DenseField, OneRecV2Config

__all__ = ["Oracle"]


def softmax_terms(scores: Array) -> Array:
    return np.exp(scores - scores.max())


class Oracle:
    """A model. `weights` are the checkpoint's tensors, any float type."""

    def __init__(
        self, config: OneRecV2Config, weights: Mapping[str, npt.NDArray[np.float32]], numbers: Numbers | None = None
    ) -> None:
        self.config = config
        self.weights = {name: np.asarray(value, np.float64) for name, value in weights.items()}
        self.numbers = numbers or Numbers("exact")

    def score(self, request: list[list[Token]], semantic_id: Sequence[int]) -> Array:
        """The log-probability of each code of a tuple given the request and the codes before it."""
        keys, values = self.context(request)
        earlier: list[list[tuple[Array, Array]]] = [[] for _ in range(self.config.num_hidden_layers)]
        out = []
        for step, code in enumerate(semantic_id):
            h = self.decoder_input(step, semantic_id[step - 1])
            for layer in range(self.config.num_hidden_layers):
                h = self.block(layer, h, keys, values, earlier[layer])
            x = self.numbers.round("head_input", self.norm(f"model.output_norms.{step}", h))
            logits = self.plain_linear(f"lm_heads.{step}", x)
            logits = self.numbers.round("logits", logits)
            top = logits.max()
            out.append(logits[code] - (top + np.log(np.exp(logits - top).sum())))
        return np.array(out)

    # --- the context ---

    def context(self, request: list[list[Token]]) -> tuple[list[Array], list[Array]]:
        """Keys and values of each group, [tokens, heads, head_dim]."""
        c = self.config
        rows = [self.context_row(p, token) for p, tokens in enumerate(request) for token in tokens]
        packed = np.array(rows).reshape(len(rows), c.d_context)
        slices = np.split(packed, c.d_context // c.d_context_kv, axis=1)
        keys, values = [], []
        for j in range(c.num_context_kv_layers):
            keys.append(self.context_heads(f"context.k_norms.{j}", slices[j * c.context_kv_split]))
            if c.context_kv_split == 2:
                values.append(self.context_heads(f"context.v_norms.{j}", slices[j * 2 + 1]))
        return keys, values or keys

    def context_heads(self, norm: str, rows: Array) -> Array:
        normed = [self.numbers.round("context_kv", self.norm(norm, row)) for row in rows]
        return np.array(normed).reshape(len(rows), self.config.num_context_kv_heads, self.config.head_dim)

    def context_row(self, p: int, token: Token) -> Array:
        pathway = self.config.pathways[p]
        prefix = f"context.pathways.{pathway.name}"
        parts = [self.table(f"context.semantic_id_embeddings.{t}", code) for t, code in enumerate(token.codes)]
        for field in pathway.fields:
            value = token.fields[field.name]
            if isinstance(field, CategoricalField):
                parts.append(self.table(f"{prefix}.fields.{field.name}", int(value)))
            elif isinstance(field, DenseField):
                parts.append(self.numbers.round("context_input", np.asarray(value, np.float64).reshape(field.dim)))
        x = np.concatenate(parts)
        for i in range(len(pathway.hidden_sizes)):
            x = self.plain_linear(f"{prefix}.proj.{i}", x)
            x = np.where(x > 0, x, pathway.negative_slope * x)
            x = self.numbers.round("context_hidden", x)
        x = self.plain_linear(f"{prefix}.proj.{len(pathway.hidden_sizes)}", x)
        x = self.numbers.round("context_projection", x)
        if pathway.position_embedding != "none":
            x = self.numbers.round("context_row", x + self.table(f"{prefix}.position_embedding", token.position))
        return x

    # --- the decoder ---

    def decoder_input(self, step: int, code: int) -> Array:
        if step:
            x = self.table(f"model.token_embeddings.{step - 1}", code)
        else:
            x = self.numbers.round("table", self.weights["model.bos_embedding"])
        if self.config.decoder_position_embedding == "learned":
            x = self.numbers.round("decoder_input", x + self.table("model.position_embedding", step))
        return x

    def block(
        self, layer: int, h: Array, keys: list[Array], values: list[Array], earlier: list[tuple[Array, Array]]
    ) -> Array:
        name = f"model.layers.{layer}"
        group = layer * self.config.num_context_kv_layers // self.config.num_hidden_layers
        x = self.block_norm(f"{name}.cross_attn_norm", h)
        h = self.add(h, self.cross_attention(f"{name}.cross_attn", x, keys[group], values[group]))
        h = self.add(h, self.self_attention(f"{name}.self_attn", self.block_norm(f"{name}.self_attn_norm", h), earlier))
        x = self.block_norm(f"{name}.mlp_norm", h)
        if self.config.is_moe_layer(layer):
            return self.add(h, self.mixture(f"{name}.mlp", x))
        return self.add(h, self.feed_forward(f"{name}.mlp", x))

    def add(self, h: Array, branch: Array) -> Array:
        return self.numbers.round("residual", h + self.numbers.round("branch", branch))

    def cross_attention(self, name: str, x: Normed, keys: Array, values: Array) -> Array:
        c = self.config
        q = self.query(name, x)
        out = np.zeros((c.num_attention_heads, c.head_dim))
        for head in range(c.num_attention_heads):
            of = head * c.num_context_kv_heads // c.num_attention_heads
            if len(keys) == 0:
                continue
            p = softmax_terms(self.numbers.round("scores", c.attention_scale * (keys[:, of] @ q[head])))
            total = self.numbers.round("denominator", p).sum()
            out[head] = self.numbers.round("cross_p", p) @ values[:, of] / total
        return self.linear(f"{name}.o_proj", out.ravel(), point="attended")

    def self_attention(self, name: str, x: Normed, earlier: list[tuple[Array, Array]]) -> Array:
        c = self.config
        q = self.query(name, x)
        k = self.heads(f"{name}.k_proj", x)
        if c.qk_norm:
            k = self.head_norm(f"{name}.k_norm", k)
        earlier.append((k, self.heads(f"{name}.v_proj", x)))
        out = np.zeros((c.num_attention_heads, c.head_dim))
        for head in range(c.num_attention_heads):
            of = head * c.num_key_value_heads // c.num_attention_heads
            scores = c.attention_scale * np.array([key[of] @ q[head] for key, _ in earlier])
            p = softmax_terms(self.numbers.round("scores", scores))
            for weight, (_, value) in zip(self.numbers.round("self_p", p), earlier, strict=True):
                out[head] += weight * value[of] / p.sum()
        return self.linear(f"{name}.o_proj", out.ravel(), point="attended")

    def query(self, name: str, x: Normed) -> Array:
        q = self.heads(f"{name}.q_proj", x)
        return self.head_norm(f"{name}.q_norm", q) if self.config.qk_norm else q

    def heads(self, name: str, x: Normed) -> Array:
        return self.numbers.round("qkv", self.linear(name, x)).reshape(-1, self.config.head_dim)

    def head_norm(self, name: str, x: Array) -> Array:
        return np.array([self.numbers.round("qk_norm", self.norm(name, head)) for head in x])

    def feed_forward(self, name: str, x: Normed, *, expert: bool = False) -> Array:
        gate = self.numbers.round("gate_up", self.linear(f"{name}.gate_proj", x, expert=expert))
        up = self.numbers.round("gate_up", self.linear(f"{name}.up_proj", x, expert=expert))
        return self.linear(f"{name}.down_proj", gate / (1 + np.exp(-gate)) * up, point="hidden", expert=expert)

    def mixture(self, name: str, x: Normed) -> Array:
        c = self.config
        logits = self.plain_linear(f"{name}.gate", self.numbers.round("router_input", x.values))
        logits = self.numbers.round("router_logits", logits)
        scores = 1 / (1 + np.exp(-logits))
        if c.scoring_func == "softmax":
            scores = softmax_terms(logits) / softmax_terms(logits).sum()
        ranked = np.argsort(-(scores + self.weights[f"{name}.gate.e_score_correction_bias"]), kind="stable")
        chosen = ranked[: c.num_experts_per_tok]
        weights = scores[chosen]
        if c.norm_topk_prob:
            weights = weights / (weights.sum() + 1e-20)
        total = np.zeros_like(x.values)
        for e, weight in zip(chosen, weights * c.routed_scaling_factor, strict=True):
            y = self.numbers.round("expert_output", self.feed_forward(f"{name}.experts.{e}", x, expert=True))
            total = self.numbers.round("expert_sum", total + weight * y)
        if c.n_shared_experts:
            total = total + self.numbers.round("shared_output", self.feed_forward(f"{name}.shared_experts", x))
        return total

    # --- the pieces ---

    def table(self, name: str, row: int) -> Array:
        return self.numbers.round("table", self.weights[f"{name}.weight"][row])

    def norm(self, name: str, x: Array) -> Array:
        gamma = self.numbers.round("vector", self.weights[f"{name}.weight"])
        return x / np.sqrt((x * x).mean() + self.config.rms_norm_eps) * gamma

    def block_norm(self, name: str, x: Array) -> Normed:
        gamma = self.numbers.round("vector", self.weights[f"{name}.weight"])
        return Normed(self.norm(name, x), code_scale(x, gamma, self.config.rms_norm_eps))

    def linear(self, name: str, x: Array | Normed, *, point: str = "block_input", expert: bool = False) -> Array:
        weight = self.weights[f"{name}.weight"]
        return self.numbers.block_linear(name, weight, x, point=point, expert=expert) + self.bias(name)

    def plain_linear(self, name: str, x: Array) -> Array:
        return self.numbers.round("plain_weight", self.weights[f"{name}.weight"]) @ x + self.bias(name)

    def bias(self, name: str) -> Array | float:
        bias = self.weights.get(f"{name}.bias")
        return 0.0 if bias is None else self.numbers.round("vector", bias)
