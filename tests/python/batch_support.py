"""What tests of batches share: two models, a catalogue of even ids, and requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from support import EVERYTHING, tiny_config

from onerec_engine._C import PackedRequests
from onerec_engine._columns import Schema, Settings
from onerec_engine._trie_index import TrieIndex
from onerec_engine.batching import context_limits, make_packer, pack, read_batch
from onerec_engine.catalogue import Catalogue
from onerec_engine.config import OneRecV2Config
from onerec_engine.request import Request

PLAIN = tiny_config()
FULL = tiny_config(**EVERYTHING)
SETTINGS = Settings(
    widths=(8, 8, 8),
    num_results=None,
    default_results=5,
    constrained=True,
    exclude_history=False,
    max_beam_width=100,
)


def make_catalogue(config: OneRecV2Config, items: int = 30) -> Catalogue:
    rng = np.random.default_rng(3)
    codes = np.column_stack([rng.integers(0, size, items) for size in config.codebook_sizes])
    return Catalogue(np.arange(items) * 2, codes, codebook_sizes=config.codebook_sizes)  # even ids are known


def prepare(
    batch: Any, config: OneRecV2Config = PLAIN, settings: Settings = SETTINGS, max_context: int | None = None
) -> PackedRequests:
    columns = read_batch(batch, Schema.of(config), settings)
    limits = context_limits(config.pathways, max_context or config.max_context)
    return pack(columns, make_packer(config, TrieIndex(make_catalogue(config)), limits))


def everything(packed: PackedRequests) -> dict[str, Any]:
    return packed.arrays(np.arange(packed.size))


def same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for name, array in a.items():
        np.testing.assert_array_equal(array, b[name], err_msg=name)
        assert array.dtype == b[name].dtype


def full_request(history: Sequence[int], long_term: Sequence[int] = (), seed: int = 0, **more: Any) -> Request:
    rng = np.random.default_rng(seed)
    features = {
        "user.age": int(rng.integers(10)),
        "user.stats": rng.standard_normal(3),
        "recent.action": rng.integers(0, 5, len(history)),
        "recent.seconds": rng.standard_normal(len(history)),
        "long_term": list(long_term),
    }
    return Request(history=history, features=features, **more)


def as_dict(batch: Sequence[Request], convert: Any = np.asarray) -> dict[str, Any]:
    def offsets(lists: Sequence[Sequence[Any]]) -> Any:
        return convert(np.cumsum([0, *map(len, lists)]))

    def flat(lists: Sequence[Any], dtype: type[np.generic]) -> Any:
        return convert(np.concatenate([np.empty(0, dtype), *(np.asarray(x, dtype).reshape(-1) for x in lists)]))

    long_term = [r.features["long_term"] for r in batch]
    return {
        "item_ids": flat([r.history for r in batch], np.int64),
        "offsets": offsets([r.history for r in batch]),
        "long_term": flat(long_term, np.int64),
        "long_term.offsets": offsets(long_term),
        "user.age": flat([r.features["user.age"] for r in batch], np.int32),
        "user.stats": convert(np.array([r.features["user.stats"] for r in batch], np.float32).reshape(len(batch), 3)),
        "recent.action": flat([r.features["recent.action"] for r in batch], np.uint8),
        "recent.seconds": flat([r.features["recent.seconds"] for r in batch], np.float32),
        "exclude": flat([r.exclude for r in batch], np.int64),
        "exclude.offsets": offsets([r.exclude for r in batch]),
        "exclude_history": convert(np.array([bool(r.exclude_history) for r in batch], np.bool_)),
    }
