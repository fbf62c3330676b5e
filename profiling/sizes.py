"""The sizes of the OneRec-V2 report as configurations, and the matrix products that they are made of."""

from __future__ import annotations

from dataclasses import dataclass

from onerec_engine.config import OneRecV2Config
from onerec_engine.pathway import Pathway

__all__ = ["SIZES", "Linear", "linears", "sized_config"]

PADDING = 16

# hidden size, layers, heads, width of a head, feed-forward width, embedding width in the context
_DENSE = {
    "0.1B": (640, 12, 10, 64, 2560, 32),
    "0.2B": (896, 12, 14, 64, 3584, 45),
    "0.5B": (1408, 14, 11, 128, 5632, 70),
    "1B": (1792, 18, 14, 128, 7168, 90),
    "2B": (2304, 22, 18, 128, 9216, 115),
    "4B": (2944, 26, 23, 128, 11776, 147),
    "8B": (3584, 34, 28, 128, 14336, 179),
    "MoE 4B-A0.5B": (1408, 14, 11, 128, 5632, 70),
    # Not of the report: to try the tools out.
    "tiny": (128, 2, 2, 64, 256, 16),
    "tiny MoE": (128, 2, 2, 64, 256, 16),
}
_MIXTURES = {"MoE 4B-A0.5B": (53, 1, 3, 1408, 2), "tiny MoE": (8, 1, 2, 128, 1)}
SIZES = tuple(_DENSE)


def sized_config(name: str, context: int = 512, codebook: int = 8192) -> OneRecV2Config:
    """The configuration of a size: three levels, one pathway of `context` items."""
    hidden, layers, heads, head_dim, intermediate, embed = _DENSE[name]
    experts, shared, top_k, width, dense = _MIXTURES.get(name, (0, 0, 0, 0, 0))
    return OneRecV2Config(
        codebook_sizes=(codebook,) * 3,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        head_dim=head_dim,
        intermediate_size=intermediate,
        embed_dim=embed,
        n_routed_experts=experts,
        n_shared_experts=shared,
        num_experts_per_tok=top_k,
        moe_intermediate_size=width,
        first_k_dense_replace=dense,
        pathways=(Pathway(name="history", kind="items", max_tokens=context, position_embedding="recency"),),
    )


@dataclass(frozen=True)
class Linear:
    """A kind of matrix product of the engine.

    Attributes:
        name: what it is.
        outputs: N, as the engine pads it.
        inputs: K, likewise.
        count: how many of them there are in the model; of the heads, one per level.
        experts: stacked weights, for the routed experts.
        quantized: whether precision fp8 quantises it.
        residual: whether its epilogue adds the residual stream.
        logits: whether its output is FP32.
    """

    name: str
    outputs: int
    inputs: int
    count: int
    experts: int = 1
    quantized: bool = True
    residual: bool = False
    logits: bool = False

    @property
    def parameters(self) -> int:
        return self.experts * self.outputs * self.inputs


def _padded(width: int) -> int:
    return -(-width // PADDING) * PADDING


def linears(config: OneRecV2Config) -> list[Linear]:
    """Every kind of linear of the decoder, its heads included, in the order of a layer."""
    d, attention, layers = config.hidden_size, config.d_attention, config.num_hidden_layers
    qkv = attention + 2 * config.num_key_value_heads * config.head_dim
    moe = sum(config.is_moe_layer(layer) for layer in range(layers))
    out = [
        Linear("cross q", attention, d, layers),
        Linear("self qkv", qkv, d, layers),
        Linear("attention o", d, attention, 2 * layers, residual=True),
    ]
    if layers > moe:
        out += [
            Linear("gate_up", 2 * config.intermediate_size, d, layers - moe),
            Linear("down", d, config.intermediate_size, layers - moe, residual=True),
        ]
    if moe:
        width, experts = config.moe_intermediate_size, config.n_routed_experts
        out += [
            Linear("router", _padded(experts), d, moe, quantized=False, logits=True),
            Linear("experts gate_up", 2 * width, d, moe, experts=experts),
            Linear("experts down", d, width, moe, experts=experts),
        ]
        shared = config.n_shared_experts * width
        if shared:
            out += [Linear("shared gate_up", 2 * shared, d, moe), Linear("shared down", d, shared, moe)]
    heads = sorted({_padded(size) for size in config.codebook_sizes})
    for size in heads:
        count = sum(_padded(codebook) == size for codebook in config.codebook_sizes)
        out.append(Linear("head", size, d, count, quantized=False, logits=True))
    return out
