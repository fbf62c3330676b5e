"""Configurations, catalogues and requests of all shapes for the tests of the model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onerec_engine.config import CategoricalField, DenseField, OneRecV2Config, Pathway
from onerec_engine.request import Request

__all__ = [
    "BIASES",
    "HISTORY",
    "MOE",
    "NAMED",
    "TAGGED",
    "USER",
    "Items",
    "drawn_config",
    "grid",
    "random_items",
    "random_requests",
    "small_config",
]

HISTORY = Pathway(name="history", kind="items", max_tokens=6, position_embedding="recency")
TAGGED = Pathway(
    name="history",
    kind="items",
    max_tokens=5,
    position_embedding="recency",
    hidden_sizes=(20,),
    bias=True,
    fields=(
        DenseField(name="age", dim=1),
        CategoricalField(name="tag", num_embeddings=7, embedding_dim=3),
        DenseField(name="x", dim=2),
        CategoricalField(name="shop", num_embeddings=4, embedding_dim=5),
    ),
)
CLICKS = Pathway(
    name="clicks", kind="items", source="clicked", max_tokens=4, position_embedding="absolute", hidden_sizes=(9, 17),
    negative_slope=0.2,
)  # fmt: skip
AGAIN = Pathway(name="again", kind="items", max_tokens=9, position_embedding="none", bias=True)
USER = Pathway(
    name="user",
    kind="static",
    fields=(CategoricalField(name="land", num_embeddings=5, embedding_dim=6), DenseField(name="y", dim=3)),
)
PLACED = Pathway(
    name="placed", kind="static", position_embedding="recency", hidden_sizes=(8,), fields=(DenseField(name="z", dim=1),)
)

MOE: dict[str, Any] = {
    "n_routed_experts": 6,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}
BIASES: dict[str, Any] = {"attention_bias": True, "mlp_bias": True, "lm_head_bias": True}


def small_config(**changes: Any) -> OneRecV2Config:
    """A dense model of two layers and three levels without anything optional, with `changes`."""
    base: dict[str, Any] = {
        "codebook_sizes": (7, 5, 6),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": 16,
        "intermediate_size": 48,
        "embed_dim": 9,
        "pathways": (HISTORY,),
    }
    return OneRecV2Config(**(base | changes))


NAMED: dict[str, OneRecV2Config] = {
    "plain": small_config(),
    "one_level": small_config(codebook_sizes=(257,), decoder_position_embedding="learned"),
    "two_levels": small_config(codebook_sizes=(5, 257), embed_dim=3),
    "four_levels": small_config(codebook_sizes=(4, 3, 5, 6), num_key_value_heads=1, pathways=(TAGGED,), **BIASES),
    "eight_levels": small_config(
        codebook_sizes=(3, 2, 4, 1, 3, 2, 2, 5), decoder_position_embedding="learned", qk_norm=True
    ),
    "single_codes": small_config(codebook_sizes=(1, 1, 1)),
    "kv_per_layer": small_config(num_hidden_layers=3, num_context_kv_layers=3, context_kv_split=2),
    "kv_of_some_layers": small_config(
        num_hidden_layers=5, num_context_kv_layers=2, context_kv_split=2, num_context_kv_heads=1, num_key_value_heads=2
    ),
    "one_head": small_config(num_attention_heads=1, head_dim=32, attention_scale=0.3),
    "everything": small_config(
        num_hidden_layers=3,
        num_key_value_heads=2,
        num_context_kv_layers=2,
        context_kv_split=2,
        num_context_kv_heads=2,
        qk_norm=True,
        decoder_position_embedding="learned",
        rms_norm_eps=1e-3,
        pathways=(USER, TAGGED, CLICKS, AGAIN, PLACED),
        **BIASES,
    ),
    "static_alone": small_config(pathways=(USER,), qk_norm=True),
    "moe": small_config(num_hidden_layers=3, **MOE),
    "moe_softmax": small_config(
        **(MOE | {"scoring_func": "softmax", "first_k_dense_replace": 0, "n_shared_experts": 0}),
        routed_scaling_factor=2.5,
    ),
    "moe_raw_scores": small_config(
        **(MOE | {"norm_topk_prob": False, "n_shared_experts": 2, "num_experts_per_tok": 3}), **BIASES
    ),
    "moe_all_selected": small_config(**(MOE | {"n_routed_experts": 3, "num_experts_per_tok": 3})),
    "moe_many": small_config(
        **(MOE | {"n_routed_experts": 17, "num_experts_per_tok": 1, "moe_intermediate_size": 16}),
        pathways=(USER, CLICKS),
    ),
    "blocks": small_config(
        hidden_size=160, num_attention_heads=2, head_dim=80, intermediate_size=272, pathways=(CLICKS, HISTORY),
        **(MOE | {"moe_intermediate_size": 144, "first_k_dense_replace": 1}),
    ),
}  # fmt: skip


def drawn_config(seed: int) -> OneRecV2Config:
    """A configuration drawn from all of the fields' values."""
    draw = random.Random(seed)
    heads = draw.choice([1, 2, 3, 4, 6])
    layers = draw.randint(1, 4)
    levels = draw.choice([1, 2, 3, 3, 3, 4, 5])
    divisors = [g for g in range(1, heads + 1) if heads % g == 0]
    pathways = draw.sample([HISTORY, CLICKS, AGAIN, USER, PLACED], draw.randint(1, 4))
    if HISTORY in pathways and draw.random() < 0.5:
        pathways[pathways.index(HISTORY)] = TAGGED
    experts = draw.choice([0, 0, 4, 11])
    moe: dict[str, Any] = {}
    if experts:
        moe = {
            "n_routed_experts": experts,
            "n_shared_experts": draw.randint(0, 2),
            "num_experts_per_tok": draw.randint(1, 3),
            "moe_intermediate_size": draw.choice([16, 48]),
            "first_k_dense_replace": draw.randint(0, layers - 1),
            "scoring_func": draw.choice(["sigmoid", "softmax"]),
            "norm_topk_prob": draw.random() < 0.5,
            "routed_scaling_factor": draw.choice([1.0, 1.7]),
        }
    return small_config(
        codebook_sizes=tuple(draw.choice([2, 3, 5, 6, 7, 9]) for _ in range(levels)),
        hidden_size=draw.choice([16, 32, 48]),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        head_dim=draw.choice([16, 32]),
        intermediate_size=draw.choice([16, 80]),
        embed_dim=draw.choice([1, 5, 9, 16]),
        pathways=tuple(pathways),
        num_key_value_heads=draw.choice(divisors),
        rms_norm_eps=draw.choice([1e-6, 1e-2]),
        num_context_kv_layers=draw.randint(1, layers),
        context_kv_split=draw.randint(1, 2),
        num_context_kv_heads=draw.choice(divisors),
        attention_scale=draw.choice([0.0, 0.4]),
        qk_norm=draw.random() < 0.5,
        attention_bias=draw.random() < 0.5,
        mlp_bias=draw.random() < 0.5,
        lm_head_bias=draw.random() < 0.5,
        decoder_position_embedding=draw.choice(["none", "learned"]),
        **moe,
    )


def grid(drawn: int) -> dict[str, OneRecV2Config]:
    """The named configurations and `drawn` drawn ones."""
    return NAMED | {f"drawn_{seed}": drawn_config(seed) for seed in range(drawn)}


@dataclass(frozen=True)
class Items:
    """A catalogue: distinct ids in no order, and codes [n, levels]; some items share a semantic id."""

    ids: npt.NDArray[np.int64]
    codes: npt.NDArray[np.int64]

    def row(self) -> dict[int, int]:
        """The row of each id."""
        return {int(item): i for i, item in enumerate(self.ids)}


def random_items(codebook_sizes: Sequence[int], count: int = 40, seed: int = 0) -> Items:
    """Random items."""
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(size, size=count) for size in codebook_sizes], 1)
    return Items(rng.permutation(count) * 3 + 100, codes)


def random_requests(
    config: OneRecV2Config, items: Items, lengths: Sequence[int], seed: int = 0, **settings: Any
) -> list[Request]:
    """Requests of `lengths` history items; a sixth of the ids are unknown to the catalogue."""
    rng = np.random.default_rng(seed)

    def ids(count: int) -> npt.NDArray[np.int64]:
        known = rng.choice(items.ids, count)
        return np.where(rng.random(count) < 1 / 6, known + 1, known)

    requests = []
    for length in lengths:
        sources = {"history": ids(length), "clicked": ids(int(rng.integers(0, length + 2)))}
        features: dict[str, Any] = {}
        for pathway in config.pathways:
            if pathway.kind == "items" and pathway.source != "history":
                features[pathway.source] = sources[pathway.source]
            tokens = sources[pathway.source].size if pathway.kind == "items" else 1
            for field in pathway.fields:
                key = f"{pathway.name}.{field.name}"
                if isinstance(field, CategoricalField):
                    features[key] = rng.integers(field.num_embeddings, size=tokens)
                else:
                    features[key] = rng.standard_normal((tokens, field.dim)).astype(np.float32)
        requests.append(Request(history=sources["history"], features=features, **settings))
    return requests
