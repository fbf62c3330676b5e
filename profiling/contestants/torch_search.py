"""OneRec-V2 and its beam search in PyTorch's own kernels: BF16, fused projections, grouped experts, torch.topk.

Everything has one shape, so that a whole search can be captured in one CUDA graph: all requests have contexts of one
length and the same beam widths. The context's keys are shared by all beams and layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from op_bench.baselines import grouped_mm, mm_float, step_attention
from torch import Tensor
from torch.nn import functional

from onerec_engine.config import OneRecV2Config
from onerec_engine.reference.trie import Trie

__all__ = ["GraphSearch", "TorchOneRec"]

cuda: Any = torch.cuda


@dataclass(frozen=True)
class _Experts:
    router: Tensor
    bias: Tensor
    gate_up: Tensor  # [experts, 2 * width, d]
    down: Tensor  # [experts, d, width]


@dataclass(frozen=True)
class _Layer:
    norms: tuple[Tensor, Tensor, Tensor]
    cross_q: Tensor
    cross_o: Tensor
    self_qkv: Tensor
    self_o: Tensor
    gate_up: Tensor | None  # of the dense or the shared network
    down: Tensor | None
    experts: _Experts | None


class TorchOneRec:
    """The model and its search for `requests` requests of `context` tokens."""

    def __init__(self, config: OneRecV2Config, weights: Callable[[str], Tensor], trie: Trie | None = None) -> None:
        """Takes the weights by their checkpoint names. With a trie the search is constrained to its items."""
        (pathway,) = config.pathways
        extras = (
            config.qk_norm or config.attention_bias or config.mlp_bias or config.lm_head_bias,
            config.decoder_position_embedding != "none",
            config.num_context_kv_layers * config.context_kv_split > 1,
            config.num_key_value_heads != config.num_attention_heads,
            pathway.fields or pathway.hidden_sizes or pathway.bias or pathway.position_embedding != "recency",
        )
        if any(extras):
            raise ValueError("[profiling] this contestant has the report's default model alone.")
        self.config, self.trie = config, trie
        prefix = f"context.pathways.{pathway.name}"
        self._ids = [weights(f"context.semantic_id_embeddings.{t}.weight") for t in range(config.levels)]
        self._projection = weights(f"{prefix}.proj.0.weight")
        self._positions = weights(f"{prefix}.position_embedding.weight")
        self._key_norm = weights("context.k_norms.0.weight")
        self._bos = weights("model.bos_embedding")
        self._tokens = [weights(f"model.token_embeddings.{t}.weight") for t in range(config.levels - 1)]
        self._layers = [self._layer(weights, layer) for layer in range(config.num_hidden_layers)]
        self._norms = [weights(f"model.output_norms.{t}.weight") for t in range(config.levels)]
        self._heads = [weights(f"lm_heads.{t}.weight") for t in range(config.levels)]

    def _layer(self, weights: Callable[[str], Tensor], index: int) -> _Layer:
        config, name = self.config, f"model.layers.{index}"

        def fused(*names: str) -> Tensor:
            return torch.cat([weights(f"{name}.{part}.weight") for part in names])

        dense, experts = "mlp.", None
        if config.is_moe_layer(index):
            dense = "mlp.shared_experts."
            d, width, count = config.hidden_size, config.moe_intermediate_size, config.n_routed_experts
            gate_up = torch.empty(count, 2 * width, d, dtype=self._bos.dtype, device=self._bos.device)
            down = torch.empty(count, d, width, dtype=self._bos.dtype, device=self._bos.device)
            for e in range(count):
                gate_up[e] = fused(f"mlp.experts.{e}.gate_proj", f"mlp.experts.{e}.up_proj")
                down[e] = fused(f"mlp.experts.{e}.down_proj")
            bias = weights(f"{name}.mlp.gate.e_score_correction_bias").float()
            experts = _Experts(fused("mlp.gate"), bias, gate_up, down)
        has_dense = experts is None or config.n_shared_experts > 0
        norms = [weights(f"{name}.{part}_norm.weight") for part in ("cross_attn", "self_attn", "mlp")]
        return _Layer(
            norms=(norms[0], norms[1], norms[2]),
            cross_q=fused("cross_attn.q_proj"),
            cross_o=fused("cross_attn.o_proj"),
            self_qkv=fused("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            self_o=fused("self_attn.o_proj"),
            gate_up=fused(f"{dense}gate_proj", f"{dense}up_proj") if has_dense else None,
            down=fused(f"{dense}down_proj") if has_dense else None,
            experts=experts,
        )

    @torch.inference_mode()
    def search(self, codes: Tensor, widths: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Beam search.

        Args:
            codes: int64 [requests, context, levels], the histories, oldest first.
            widths: beams kept after each level.

        Returns:
            the codes of the last level's beams, int64 [requests, beams, levels], best first, and their scores.
        """
        with _attention_backends(codes.device):
            return self._search(codes, widths)

    def _search(self, codes: Tensor, widths: Sequence[int]) -> tuple[Tensor, Tensor]:
        requests = codes.shape[0]
        keys = self._keys(codes)
        scores = torch.zeros(requests, 1, device=codes.device)
        first = torch.arange(requests, device=codes.device)[:, None]
        chosen = torch.empty(requests, 1, 0, dtype=torch.int64, device=codes.device)
        node = torch.zeros(requests, 1, dtype=torch.int64, device=codes.device)
        ancestry: list[Tensor] = []
        caches: list[list[Tensor]] = [[] for _ in self._layers]
        for step, width in enumerate(widths):
            beams = scores.shape[1]
            rows = requests * beams
            if step == 0:
                h = self._bos.expand(rows, -1)
            else:
                h = functional.embedding(chosen[:, :, -1].flatten(), self._tokens[step - 1])
            for layer, cache in zip(self._layers, caches, strict=True):
                h = self._block(layer, h, keys, cache, ancestry, requests)
            logits = mm_float(self._norm(h, self._norms[step]), self._heads[step])
            total = torch.log_softmax(logits, -1).view(requests, beams, -1) + scores[:, :, None]
            scores, parent, code, node = self._keep(step, total, node, width)
            chosen = torch.cat([chosen.gather(1, parent[:, :, None].expand(-1, -1, step)), code[:, :, None]], 2)
            rows_before = (first * beams + parent).flatten()
            ancestry = [earlier[rows_before] for earlier in ancestry] + [rows_before]
        return chosen, scores

    def _keep(self, step: int, total: Tensor, node: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The best candidates of each request: scores, parents, codes, trie nodes."""
        if self.trie is None:
            scores, place = total.flatten(1).topk(width, dim=1)
            size = total.shape[2]
            return scores, place // size, place % size, node.new_zeros(place.shape)
        child, code, exists = self.trie.children(step, node)
        legal = total.gather(2, code).masked_fill(~exists, -torch.inf)
        missing = width - legal.shape[1] * legal.shape[2]
        if missing > 0:
            raise ValueError(f"[profiling] got {width} beams, which level {step} of this catalogue cannot fill.")
        scores, place = legal.flatten(1).topk(width, dim=1)
        return scores, place // legal.shape[2], code.flatten(1).gather(1, place), child.flatten(1).gather(1, place)

    def _norm(self, x: Tensor, gamma: Tensor) -> Tensor:
        return functional.rms_norm(x, gamma.shape, gamma, self.config.rms_norm_eps)

    def _keys(self, codes: Tensor) -> Tensor:
        """Keys, which are the values too: [requests, kv heads, context, head_dim]."""
        requests, context, levels = codes.shape
        embedded = torch.cat([functional.embedding(codes[..., t], self._ids[t]) for t in range(levels)], -1)
        rows = functional.linear(embedded, self._projection) + self._positions[:context].flip(0)
        keys = self._norm(rows, self._key_norm)
        return keys.view(requests, context, -1, self.config.head_dim).transpose(1, 2).contiguous()

    def _block(
        self, layer: _Layer, h: Tensor, keys: Tensor, cache: list[Tensor], ancestry: list[Tensor], requests: int
    ) -> Tensor:
        config = self.config
        heads, width, scale = config.num_attention_heads, config.head_dim, config.attention_scale
        q = functional.linear(self._norm(h, layer.norms[0]), layer.cross_q)
        q = q.view(requests, -1, heads, width).transpose(1, 2)
        attended = functional.scaled_dot_product_attention(
            q, keys, keys, scale=scale, enable_gqa=heads != keys.shape[1]
        )
        h = torch.addmm(h, attended.transpose(1, 2).reshape(h.shape[0], -1), layer.cross_o.t())
        cache.append(functional.linear(self._norm(h, layer.norms[1]), layer.self_qkv))
        h = torch.addmm(h, step_attention(cache, ancestry, heads, width, scale), layer.self_o.t())
        x = self._norm(h, layer.norms[2])
        if layer.experts is not None:
            h = h + self._mixture(layer.experts, x)
        if layer.gate_up is not None and layer.down is not None:
            h = torch.addmm(h, _swiglu(functional.linear(x, layer.gate_up)), layer.down.t())
        return h

    def _mixture(self, experts: _Experts, x: Tensor) -> Tensor:
        """Rows sorted by expert, two grouped products, and the weighted sum of each row's experts."""
        top_k = self.config.num_experts_per_tok
        rows, count = x.shape[0], experts.gate_up.shape[0]
        scores = torch.sigmoid(mm_float(x, experts.router))
        chosen = torch.topk(scores + experts.bias, top_k, dim=-1).indices
        weights = scores.gather(1, chosen)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20) * self.config.routed_scaling_factor
        expert, order = torch.sort(chosen.flatten(), stable=True)
        ends = torch.searchsorted(expert, torch.arange(count, device=x.device), right=True).int()
        hidden = _swiglu(grouped_mm(x[order // top_k], experts.gate_up, ends))
        out = torch.empty(rows * top_k, x.shape[1], dtype=x.dtype, device=x.device)
        out[order] = grouped_mm(hidden, experts.down, ends)
        return (out.view(rows, top_k, -1) * weights.to(x.dtype)[:, :, None]).sum(1)


def _swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return functional.silu(gate) * up


def _attention_backends(device: torch.device) -> AbstractContextManager[None]:
    """cuDNN's attention first: on Hopper it is the fastest of torch's."""
    if device.type != "cuda":
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    backends: AbstractContextManager[None] = sdpa_kernel(order, set_priority=True)
    return backends


class GraphSearch:
    """A search captured in one CUDA graph."""

    def __init__(self, model: TorchOneRec, codes: Tensor, widths: Sequence[int]) -> None:
        """Runs the search twice on a stream of its own, then captures it."""
        self._codes = codes.clone()
        self._graph = cuda.CUDAGraph()
        stream = cuda.Stream()
        stream.wait_stream(cuda.current_stream())
        with cuda.stream(stream):
            for _ in range(2):
                model.search(self._codes, widths)
        cuda.current_stream().wait_stream(stream)
        with cuda.graph(self._graph):
            self._found = model.search(self._codes, widths)

    def search(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Searches for other histories of the same shape. The answers are overwritten by the next call."""
        self._codes.copy_(codes)
        self._graph.replay()
        return self._found
