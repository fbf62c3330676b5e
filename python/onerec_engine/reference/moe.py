"""Feed-forward networks: SwiGLU and the mixture of experts with a shared expert."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from onerec_engine.config import OneRecV2Config
from onerec_engine.reference.emulation import Emulated, Quantized
from onerec_engine.reference.numerics import Native

__all__ = ["Experts", "FeedForward", "MixtureOfExperts", "Router"]

_DENSE_EXPERTS = 4
"""Up to this many times the selected experts, computing all of them beats sorting rows by expert."""


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, prefix: str, size: int, inner: int, *, bias: bool) -> None:
        """Makes a network [size -> inner -> size] with checkpoint names under `prefix`."""
        super().__init__()
        self.prefix = prefix
        self.gate_proj = nn.Linear(size, inner, bias=bias)
        self.up_proj = nn.Linear(size, inner, bias=bias)
        self.down_proj = nn.Linear(inner, size, bias=bias)

    def forward(self, x: Tensor, ops: Native) -> Tensor:
        """Normed rows [..., d] -> [..., d], not yet stored."""
        gate, up = ops.linear(f"{self.prefix}.gate_up_proj", x, [self.gate_proj, self.up_proj])
        inner = ops.swiglu(ops.store(gate), ops.store(up))
        (out,) = ops.linear(f"{self.prefix}.down_proj", inner, [self.down_proj])
        return out


class Router(nn.Module):
    """Expert selection as in DeepSeek-V3: the bias takes part in the selection only."""

    e_score_correction_bias: Tensor

    def __init__(self, config: OneRecV2Config, name: str) -> None:
        """Makes the router of one layer, `name` being its checkpoint name."""
        super().__init__()
        self.name = name
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(config.n_routed_experts))
        self.top_k, self.sigmoid = config.num_experts_per_tok, config.scoring_func == "sigmoid"
        self.normalise, self.factor = config.norm_topk_prob, config.routed_scaling_factor

    def forward(self, x: Tensor, ops: Native) -> tuple[Tensor, Tensor]:
        """Normed rows [R, d] -> selected experts int64 [R, k] and their weights float32 [R, k]."""
        logits = ops.plain_linear(self.name, x, self.weight, None).float()
        scores = torch.sigmoid(logits) if self.sigmoid else torch.softmax(logits, -1)
        biased = scores + self.e_score_correction_bias.float()
        if ops.exact:
            chosen = torch.sort(biased, dim=-1, descending=True, stable=True).indices[:, : self.top_k]
        else:
            chosen = torch.topk(biased, self.top_k, dim=-1).indices
        weights = scores.gather(1, chosen)
        if self.normalise:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return chosen, weights * self.factor


class Experts(nn.Module):
    """The routed experts, stacked; the state dict holds one tensor per expert and matrix."""

    def __init__(self, experts: int, size: int, inner: int) -> None:
        """Makes `experts` bias-free SwiGLU networks [size -> inner -> size]."""
        super().__init__()
        self.gate_proj = nn.Parameter(torch.empty(experts, inner, size))
        self.up_proj = nn.Parameter(torch.empty(experts, inner, size))
        self.down_proj = nn.Parameter(torch.empty(experts, size, inner))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        for name, stacked in self.named_parameters(recurse=False):
            for e, weight in enumerate(stacked if keep_vars else stacked.detach()):
                destination[f"{prefix}{e}.{name}.weight"] = weight

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Tensor],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        known = set()
        for name, stacked in self.named_parameters(recurse=False):
            for e in range(stacked.shape[0]):
                key = f"{prefix}{e}.{name}.weight"
                known.add(key)
                if key not in state_dict:
                    missing_keys.append(key)
                elif state_dict[key].shape != stacked[e].shape:
                    error_msgs.append(
                        f"{key}: got shape {tuple(state_dict[key].shape)}, want {tuple(stacked[e].shape)}"
                    )
                else:
                    with torch.no_grad():
                        stacked[e].copy_(state_dict[key])
        if strict:
            unexpected_keys.extend(k for k in state_dict if k.startswith(prefix) and k not in known)


class MixtureOfExperts(nn.Module):
    """Routed experts plus one shared network: y = sum over the selected of w_e y_e, + y_shared.

    Attributes:
        load: float32 [E], rows each expert received since the last balancing, counted in training.
    """

    load: Tensor

    def __init__(self, config: OneRecV2Config, prefix: str) -> None:
        """Makes the mixture of one layer with checkpoint names under `prefix`."""
        super().__init__()
        d, f = config.hidden_size, config.moe_intermediate_size
        self.prefix = prefix
        self.gate = Router(config, f"{prefix}.gate")
        self.experts = Experts(config.n_routed_experts, d, f)
        self.shared_experts: FeedForward | None = None
        if config.n_shared_experts:
            inner = config.n_shared_experts * f
            self.shared_experts = FeedForward(f"{prefix}.shared_experts", d, inner, bias=config.mlp_bias)
        self.register_buffer("load", torch.zeros(config.n_routed_experts), persistent=False)

    def forward(self, x: Tensor, ops: Native) -> Tensor:
        """Normed rows [..., d] -> [..., d], not yet stored."""
        rows = x.reshape(-1, x.shape[-1])
        chosen, weights = self.gate(rows, ops)
        if self.training:
            self.load += torch.zeros_like(self.load).scatter_add_(
                0, chosen.flatten(), torch.ones_like(weights).flatten()
            )
        if isinstance(ops, Emulated):
            out = self._emulated(x, chosen, weights, ops)
        elif self.training or self.experts.gate_proj.shape[0] <= _DENSE_EXPERTS * self.gate.top_k:
            out = self._all_experts(rows, chosen, weights)
        else:
            out = self._sorted_experts(rows, chosen, weights)
        if self.shared_experts is not None:
            out = out + ops.store(self.shared_experts(x, ops)).view(out.shape)
        return out.view(x.shape)

    @torch.no_grad()
    def balance(self, rate: float) -> None:
        """Auxiliary-loss-free balancing (DeepSeek-V3): bias += rate * sign(mean load - load); clears the counts."""
        self.gate.e_score_correction_bias += rate * torch.sign(self.load.mean() - self.load)
        self.load.zero_()

    def _all_experts(self, rows: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Every expert on every row, as three wide products."""
        count, inner, size = self.experts.gate_proj.shape
        dense = torch.zeros(rows.shape[0], count, dtype=weights.dtype, device=rows.device).scatter(1, chosen, weights)
        gate = functional.linear(rows, self.experts.gate_proj.view(count * inner, size))
        up = functional.linear(rows, self.experts.up_proj.view(count * inner, size))
        hidden = (functional.silu(gate) * up).view(rows.shape[0], count, inner) * dense.unsqueeze(-1).to(gate.dtype)
        down = self.experts.down_proj.permute(1, 0, 2).reshape(size, count * inner)
        return functional.linear(hidden.flatten(1), down)

    def _sorted_experts(self, rows: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Rows sorted by expert, one product per expert and matrix."""
        order = torch.argsort(chosen.flatten(), stable=True)
        source = order // chosen.shape[1]
        counts = torch.bincount(chosen.flatten(), minlength=self.experts.gate_proj.shape[0]).tolist()
        parts = []
        for e, part in enumerate(torch.split(rows[source], counts)):
            gate = functional.linear(part, self.experts.gate_proj[e])
            up = functional.linear(part, self.experts.up_proj[e])
            parts.append(functional.linear(functional.silu(gate) * up, self.experts.down_proj[e]))
        out = torch.cat(parts)
        out = out * weights.flatten()[order].unsqueeze(1).to(out.dtype)
        return torch.zeros_like(rows).index_add_(0, source, out)

    def _emulated(self, x: Tensor, chosen: Tensor, weights: Tensor, ops: Emulated) -> Tensor:
        """Pair by (row, selected expert) pair, rounding as docs/numerics.md says; sums in order of selection.

        Rows [..., d], as the norm returned them, -> [R, d].
        """
        rows, pairs = chosen.shape
        flat = chosen.flatten()
        gate, up = self._grouped("gate_up_proj", ("gate_proj", "up_proj"), x, flat, ops, repeats=pairs)
        inner = ops.swiglu(ops.store(gate), ops.store(up))
        (down,) = self._grouped("down_proj", ("down_proj",), inner, flat, ops)
        down = ops.store(down).view(rows, pairs, x.shape[-1])
        total = x.new_zeros(rows, x.shape[-1])
        for i in range(pairs):
            total = total + weights[:, i, None] * down[:, i]
        return total

    def _grouped(
        self, fused: str, members: tuple[str, ...], x: Tensor, expert: Tensor, ops: Emulated, *, repeats: int = 1
    ) -> list[Tensor]:
        """Each pair through its expert's matrices, `repeats` pairs a row: [..., K] -> [P, N] per member, not stored."""
        scheme = ops.experts_scheme
        operand = ops.operand(f"{self.prefix}.experts.{fused}", x, scheme, repeats=repeats)
        outputs = []
        for member in members:
            stacked: Tensor = getattr(self.experts, member)
            out = x.new_zeros(expert.shape[0], stacked.shape[1])
            for e in torch.unique(expert).tolist():
                at = expert == e
                mine = operand[at] if isinstance(operand, Tensor) else Quantized(operand.codes[at], operand.scales[at])
                out[at] = ops.product(mine, f"{self.prefix}.experts.{e}.{member}.weight", stacked[e], scheme)
            outputs.append(out)
        return outputs
