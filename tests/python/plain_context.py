"""From requests to context tokens, one token at a time: docs/checkpoint_format.md without any packing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from model_grid import Items

from onerec_engine.config import CategoricalField, OneRecV2Config, Pathway
from onerec_engine.reference import ContextInput, PathwayInput
from onerec_engine.request import Request

__all__ = ["Token", "context_input", "tokens_of"]


@dataclass(frozen=True)
class Token:
    """One context token: its codes (of an item), its row of the position table, its fields' values by name."""

    codes: tuple[int, ...]
    position: int
    fields: dict[str, Any]


def tokens_of(request: Request, config: OneRecV2Config, items: Items) -> list[list[Token]]:
    """The tokens of each pathway, oldest first."""
    rows = items.row()
    out = []
    for pathway in config.pathways:
        if pathway.kind == "static":
            fields = {f.name: request.features[f"{pathway.name}.{f.name}"][0] for f in pathway.fields}
            out.append([Token((), 0, fields)])
            continue
        ids = request.history if pathway.source == "history" else request.features[pathway.source]
        known = [i for i, item in enumerate(ids) if int(item) in rows]
        kept = known[max(len(known) - pathway.max_tokens, 0) :]
        tokens = []
        for place, i in enumerate(kept):
            position = len(kept) - 1 - place if pathway.position_embedding == "recency" else place
            fields = {f.name: request.features[f"{pathway.name}.{f.name}"][i] for f in pathway.fields}
            tokens.append(Token(tuple(items.codes[rows[int(ids[i])]].tolist()), position, fields))
        out.append(tokens)
    return out


def context_input(requests: Sequence[list[list[Token]]], config: OneRecV2Config) -> ContextInput:
    """The requests' tokens, packed for the reference."""
    sizes = [sum(len(tokens) for tokens in request) for request in requests]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    pathways = []
    for p, pathway in enumerate(config.pathways):
        tokens = [token for request in requests for token in request[p]]
        rows = []
        for b, request in enumerate(requests):
            start = offsets[b] + sum(len(of) for of in request[:p])
            rows += range(start, start + len(request[p]))
        pathways.append(_pathway_input(pathway, tokens, rows, config.levels))
    return ContextInput(pathways=tuple(pathways), context_offsets=torch.from_numpy(offsets))


def _pathway_input(pathway: Pathway, tokens: list[Token], rows: list[int], levels: int) -> PathwayInput:
    count = len(tokens)
    names = [f.name for f in pathway.fields if isinstance(f, CategoricalField)]
    categorical = [[int(token.fields[name]) for name in names] for token in tokens]
    dense = [
        np.concatenate([np.zeros(0), *(np.ravel(token.fields[f.name]) for f in pathway.dense_fields)])
        for token in tokens
    ]
    n_dense = sum(f.dim for f in pathway.dense_fields)
    return PathwayInput(
        codes=torch.tensor([t.codes for t in tokens], dtype=torch.int64).reshape(
            count, levels if pathway.kind == "items" else 0
        ),
        positions=torch.tensor([t.position for t in tokens], dtype=torch.int64),
        rows=torch.tensor(rows, dtype=torch.int64),
        categorical=torch.tensor(categorical, dtype=torch.int64).reshape(count, len(names)),
        dense=torch.from_numpy(np.array(dense, np.float32).reshape(count, n_dense)),
    )
