"""Random requests for a model of any configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onerec_engine.pathway import CategoricalField, Pathway
from onerec_engine.request import Request

if TYPE_CHECKING:
    from onerec_engine.engine import Engine

__all__ = ["random_requests"]


def random_requests(engine: Engine, count: int, length: int | None = None, seed: int = 0) -> list[Request]:
    """Requests with histories of random items and random values of every feature.

    Args:
        engine: whose catalogue and pathways to draw from.
        count: how many requests.
        length: items per pathway; by default, and at most, what each pathway has room for.
        seed: of the generator.
    """
    rng = np.random.default_rng(seed)
    return [_request(engine, length, rng) for _ in range(count)]


def _request(engine: Engine, length: int | None, rng: np.random.Generator) -> Request:
    sizes: dict[str, int] = {}
    for pathway in engine.config.pathways:
        if pathway.kind == "items":
            room = pathway.max_tokens if length is None else min(length, pathway.max_tokens)
            sizes[pathway.source] = max(room, sizes.get(pathway.source, 0))
    sources = {name: rng.choice(engine.catalogue.item_ids, size) for name, size in sizes.items()}
    features: dict[str, Any] = {name: items for name, items in sources.items() if name != "history"}
    for pathway in engine.config.pathways:
        rows = sizes[pathway.source] if pathway.kind == "items" else 1
        features |= _fields(pathway, rows, rng)
    return Request(history=sources.get("history", ()), features=features)


def _fields(pathway: Pathway, rows: int, rng: np.random.Generator) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for field in pathway.fields:
        if isinstance(field, CategoricalField):
            out[f"{pathway.name}.{field.name}"] = rng.integers(0, field.num_embeddings, rows)
        else:
            values = rng.standard_normal((rows, field.dim)).astype(np.float32)
            out[f"{pathway.name}.{field.name}"] = values if field.dim > 1 else values[:, 0]
    return out
