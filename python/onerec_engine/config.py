"""The model's configuration: `config.json` read, checked and turned into a frozen dataclass.

Field names follow Hugging Face conventions (DeepSeek-V3's for the mixture of experts). The model is
OneRec-V2 (arXiv 2508.20900); what its report does not print is a field here with a stated default.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from onerec_engine._config_checks import MAX_CODEBOOK_SIZE, MAX_LEVELS, config_problems, is_int
from onerec_engine._json import JsonError, quote, read_json
from onerec_engine.errors import ConfigError
from onerec_engine.pathway import CategoricalField, DenseField, Pathway, read_pathway

__all__ = [
    "MAX_CODEBOOK_SIZE",
    "MAX_LEVELS",
    "CategoricalField",
    "DenseField",
    "OneRecV2Config",
    "Pathway",
    "load_config",
]

MODEL_TYPE = "onerec_v2"


@dataclass(frozen=True, slots=True, kw_only=True)
class OneRecV2Config:
    """A OneRec-V2 model (arXiv 2508.20900). Symbols of the paper stand in brackets.

    Attributes:
        codebook_sizes: codes per semantic-id level; an item is one code per level.
        hidden_size: width of the residual stream [d].
        num_hidden_layers: decoder blocks.
        num_attention_heads: query heads of both attentions [H].
        head_dim: width of a head [d_head].
        num_key_value_heads: key/value heads of the self-attention (default H).
        intermediate_size: width of the dense feed-forward network [d_ff].
        rms_norm_eps: epsilon of every RMSNorm.
        num_context_kv_layers: context key/value groups along the depth [L_kv]; layer l uses group
            floor(l * L_kv / num_hidden_layers).
        context_kv_split: 1 for K = V, 2 for separate V [S_kv].
        num_context_kv_heads: context key/value heads [G_kv] (default H).
        attention_scale: softmax scale of both attentions (default 1 / sqrt(head_dim)).
        qk_norm: RMSNorm over head_dim on the queries of both attentions and the self-attention's keys.
        attention_bias: biases on q, k, v, o of both attentions.
        mlp_bias: biases on gate, up, down of dense and shared-expert feed-forward networks.
        lm_head_bias: biases on the per-level heads.
        decoder_position_embedding: ``none`` or ``learned`` (one row per decode step).
        n_routed_experts: routed experts per MoE layer; 0 makes every layer dense.
        n_shared_experts: shared experts, held as one network of n_shared_experts * moe_intermediate_size.
        num_experts_per_tok: routed experts per row.
        moe_intermediate_size: width of one expert.
        first_k_dense_replace: leading layers that stay dense.
        scoring_func: router score, ``sigmoid`` or ``softmax``.
        norm_topk_prob: divide the selected scores by their sum.
        routed_scaling_factor: factor on the routed experts' weights.
        embed_dim: width of a semantic-id embedding in the context.
        pathways: the context's token streams, in packing order.
        torch_dtype: storage type of the checkpoint's weights, informative.
    """

    codebook_sizes: tuple[int, ...]
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int
    intermediate_size: int
    embed_dim: int
    pathways: tuple[Pathway, ...]
    num_key_value_heads: int = 0
    rms_norm_eps: float = 1e-6
    num_context_kv_layers: int = 1
    context_kv_split: int = 1
    num_context_kv_heads: int = 0
    attention_scale: float = 0.0
    qk_norm: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    lm_head_bias: bool = False
    decoder_position_embedding: Literal["none", "learned"] = "none"
    n_routed_experts: int = 0
    n_shared_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    first_k_dense_replace: int = 0
    scoring_func: Literal["sigmoid", "softmax"] = "sigmoid"
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    torch_dtype: str = "bfloat16"
    quantization_config: Mapping[str, Any] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Fills the defaults that depend on other fields, then checks everything.

        Raises:
            ConfigError: listing every problem found.
        """
        if is_int(self.num_key_value_heads, 0, 0):
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        if is_int(self.num_context_kv_heads, 0, 0):
            object.__setattr__(self, "num_context_kv_heads", self.num_attention_heads)
        if self.attention_scale in (0, 0.0) and is_int(self.head_dim, 1, 1 << 20):
            object.__setattr__(self, "attention_scale", 1.0 / math.sqrt(self.head_dim))
        problems = config_problems(self)
        if problems:
            raise ConfigError("[config] " + "; ".join(problems) + ". Correct config.json.")

    @property
    def levels(self) -> int:
        """Semantic-id levels, which is also the number of decode steps."""
        return len(self.codebook_sizes)

    @property
    def d_context(self) -> int:
        """Width of a projected context token [S_kv * L_kv * G_kv * d_head]."""
        return self.context_kv_split * self.num_context_kv_layers * self.d_context_kv

    @property
    def d_context_kv(self) -> int:
        """Width of one context key or value row [G_kv * d_head]."""
        return self.num_context_kv_heads * self.head_dim

    @property
    def d_attention(self) -> int:
        """Width of all query heads together [H * d_head]."""
        return self.num_attention_heads * self.head_dim

    @property
    def max_context(self) -> int:
        """The largest number of context tokens one request can have."""
        return sum(p.max_tokens for p in self.pathways)

    def is_moe_layer(self, layer: int) -> bool:
        """Whether block `layer` has a mixture of experts instead of a dense feed-forward network."""
        return self.n_routed_experts > 0 and layer >= self.first_k_dense_replace

    def context_kv_layer(self, layer: int) -> int:
        """The context key/value group of block `layer`: floor(layer * L_kv / num_hidden_layers)."""
        return layer * self.num_context_kv_layers // self.num_hidden_layers

    def pathway_input_dim(self, pathway: Pathway) -> int:
        """Width of a token's concatenated input embedding in `pathway`."""
        ids = self.levels * self.embed_dim if pathway.kind == "items" else 0
        return ids + sum(f.width for f in pathway.fields)

    def to_dict(self) -> dict[str, Any]:
        """The content of `config.json`."""
        out: dict[str, Any] = {"architectures": ["OneRecV2ForGenerativeRecommendation"], "model_type": MODEL_TYPE}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.name == "pathways":
                out[f.name] = [p.to_dict() for p in self.pathways]
            elif f.name == "quantization_config":
                if value is not None:
                    out[f.name] = dict(value)
            else:
                out[f.name] = list(value) if isinstance(value, tuple) else value
        return out

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> OneRecV2Config:
        """Reads the content of `config.json`.

        Raises:
            ConfigError: for unknown, missing or ill-typed fields, and for everything `__post_init__` refuses.
        """
        if not isinstance(raw, Mapping):
            raise ConfigError(f"[config] got {type(raw).__name__}, want a JSON object. Correct config.json.")
        if raw.get("model_type") != MODEL_TYPE:
            got = quote(raw.get("model_type"))
            raise ConfigError(f"[config] got model_type {got}, want {MODEL_TYPE!r}. Nothing else is read yet.")
        known = {f.name for f in dataclasses.fields(OneRecV2Config)}
        ignored = {"architectures", "model_type", "transformers_version", "dtype"}
        unknown = sorted(set(raw) - known - ignored, key=str)
        if unknown:
            raise ConfigError(f"[config] got unknown fields {quote(unknown)}. Remove them or correct their spelling.")
        required = [
            f.name
            for f in dataclasses.fields(OneRecV2Config)
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        ]
        missing = [name for name in required if raw.get(name) is None]
        if missing:
            raise ConfigError(f"[config] missing fields {missing}. Add them to config.json.")
        values = {k: v for k, v in raw.items() if k in known and v is not None}
        for name in ("codebook_sizes", "pathways"):
            if not isinstance(values[name], (list, tuple)):
                raise ConfigError(f"[config] got {name} = {quote(values[name])}, want a list. Correct config.json.")
        if not isinstance(values.get("quantization_config", {}), Mapping):
            raise ConfigError("[config] got a quantization_config that is no object. Correct config.json.")
        values["codebook_sizes"] = tuple(values["codebook_sizes"])
        values["pathways"] = tuple(read_pathway(p, i) for i, p in enumerate(values["pathways"]))
        return OneRecV2Config(**values)


def load_config(path: str | Path) -> OneRecV2Config:
    """Reads `config.json`.

    Args:
        path: the file, or the checkpoint directory that holds it.

    Raises:
        ConfigError: if the file is missing, larger than 16 MiB, no JSON, or describes no model this engine can run.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "config.json"
    try:
        raw = read_json(file)
    except FileNotFoundError:
        raise ConfigError(f"[config] found no {file}. Point to a checkpoint directory with a config.json.") from None
    except JsonError as error:
        raise ConfigError(f"[config] {file} {error}. Correct the file.") from None
    return OneRecV2Config.from_dict(raw)
