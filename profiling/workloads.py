"""What is raced: the bundled checkpoint, and a random model of the paper's 0.1B size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

WIDE = "0.1B"


def bundled_requests(checkpoint: Path, destination: Path, count: int) -> Path:
    """The histories of the checkpoint's example requests, the first ones again if there are too few."""
    lines = (checkpoint / "example_requests.jsonl").read_text(encoding="utf-8").splitlines()
    histories = [json.loads(line)["history"] for line in lines if line.strip()]
    return _write(destination, [np.array(histories[i % len(histories)]) for i in range(count)])


def random_requests(checkpoint: Path, destination: Path, count: int, length: int, seed: int = 0) -> Path:
    """Histories of `length` random items of the catalogue."""
    with np.load(checkpoint / "catalogue.npz") as file:
        item_ids = file["item_ids"]
    rng = np.random.default_rng(seed)
    return _write(destination, [rng.choice(item_ids, length) for _ in range(count)])


def wide_checkpoint(directory: Path, items: int = 200_000, context: int = 512) -> Path:
    """A random dense model of the report's 0.1B row with three codebooks of 8192; made once per directory."""
    if (directory / "catalogue.npz").is_file():
        return directory
    from onerec_engine.config import OneRecV2Config
    from onerec_engine.pathway import Pathway
    from onerec_engine.reference import random_state_dict, save_checkpoint

    config = OneRecV2Config(
        codebook_sizes=(8192, 8192, 8192),
        hidden_size=640,
        num_hidden_layers=12,
        num_attention_heads=10,
        head_dim=64,
        intermediate_size=2560,
        embed_dim=32,
        pathways=(Pathway(name="history", kind="items", max_tokens=context, position_embedding="recency"),),
    )
    semantic_ids = random_catalogue(config.codebook_sizes, items)
    save_checkpoint(directory, config, random_state_dict(config), np.arange(items), semantic_ids)
    return directory


def tiny_checkpoint(directory: Path) -> Path:
    """The smallest model that loads: its process shows what an empty engine takes."""
    if (directory / "catalogue.npz").is_file():
        return directory
    from onerec_engine.config import OneRecV2Config
    from onerec_engine.pathway import Pathway
    from onerec_engine.reference import random_state_dict, save_checkpoint

    config = OneRecV2Config(
        codebook_sizes=(16, 16, 16),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        head_dim=16,
        intermediate_size=16,
        embed_dim=16,
        pathways=(Pathway(name="history", kind="items", max_tokens=4, position_embedding="recency"),),
    )
    save_checkpoint(
        directory, config, random_state_dict(config), np.arange(32), random_catalogue(config.codebook_sizes, 32)
    )
    return directory


def random_catalogue(sizes: tuple[int, ...], items: int, seed: int = 0) -> np.ndarray:
    """Distinct random tuples, uint16 or wider [items, levels]."""
    rng = np.random.default_rng(seed)
    rows = np.stack([rng.integers(0, size, 2 * items) for size in sizes], axis=1)
    distinct = np.unique(rows, axis=0)
    return distinct[np.sort(rng.choice(len(distinct), items, replace=False))].astype(np.int32)


def _write(destination: Path, histories: list[np.ndarray]) -> Path:
    offsets = np.concatenate([[0], np.cumsum([len(h) for h in histories])]).astype(np.int64)
    destination.parent.mkdir(parents=True, exist_ok=True)
    np.savez(destination, item_ids=np.concatenate(histories).astype(np.int64), offsets=offsets)
    return destination
