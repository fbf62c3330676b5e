"""Amazon Beauty for OneRec-V2: sequences, packed histories, and the leave-one-out evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from onerec_engine.reference import ContextInput, Excluded, OneRecV2, PathwayInput, Trie, beam_search

__all__ = ["Augmentation", "Sequences", "evaluate", "make_context", "send"]

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sequences:
    """All users' items and their semantic ids.

    Attributes:
        items: [n], users one after another, oldest first.
        starts: [users + 1], user u owns items[starts[u] : starts[u + 1]].
        semantic_ids: [n_items, T].
        device_ids: the same on the training device.
        trie: the catalogue there.
    """

    items: IntArray
    starts: IntArray
    semantic_ids: IntArray
    device_ids: Tensor
    trie: Trie

    @staticmethod
    def load(path: Path, key: str, device: torch.device) -> Sequences:
        """Reads beauty.npz, semantic ids from array `key`."""
        with np.load(path) as raw:
            items, starts, ids = (raw[k].astype(np.int64) for k in ("items", "offsets", key))
        trie = Trie.build(np.arange(ids.shape[0]), ids, device)
        return Sequences(items, starts, ids, torch.from_numpy(ids).to(device), trie)

    def targets(self, from_end: int) -> tuple[IntArray, IntArray]:
        """Each user's item `from_end` places before the end (1 = the last): first history index, target index."""
        return self.starts[:-1], self.starts[1:] - from_end

    def training_targets(self) -> tuple[IntArray, IntArray]:
        """Every item a user has before the last two, but the first: first history index, target index."""
        user = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
        index = np.arange(len(self.items))
        wanted = (index > self.starts[user]) & (index < self.starts[user + 1] - 2)
        return self.starts[user[wanted]], index[wanted]


@dataclass(frozen=True)
class Augmentation:
    """Random changes to training histories: tokens dropped, cut short, and order blurred."""

    drop: float
    truncate: float
    jitter: float
    rng: np.random.Generator


def send(array: IntArray, device: torch.device) -> Tensor:
    """Copies to the device without waiting for it."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def make_context(
    data: Sequences, first: IntArray, target: IntArray, history: int, augment: Augmentation | None = None
) -> ContextInput:
    """Histories items[first:target], the newest `history` of each, as a packed context with recency positions."""
    lengths = np.minimum(target - first, history)
    if augment is not None and augment.truncate:
        shorter = 1 + (augment.rng.random(len(lengths)) * lengths).astype(np.int64)
        lengths = np.where(augment.rng.random(len(lengths)) < augment.truncate, shorter, lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    request = np.repeat(np.arange(len(lengths)), lengths)
    recency = offsets[request + 1] - 1 - np.arange(offsets[-1])
    index = target[request] - 1 - recency
    if augment is not None and augment.drop:
        kept = augment.rng.random(len(index)) >= augment.drop
        counts = np.bincount(request[kept], minlength=len(lengths))
        kept |= (recency == 0) & (counts[request] == 0)
        request, index, recency = request[kept], index[kept], recency[kept]
        lengths = np.bincount(request, minlength=len(lengths))
        offsets = np.concatenate([[0], np.cumsum(lengths)])
    if augment is not None and augment.jitter:
        order = np.lexsort((-(recency + augment.jitter * augment.rng.random(len(recency))), request))
        index = index[order]
    recency = offsets[request + 1] - 1 - np.arange(offsets[-1])
    item, position, packed = (send(a, data.device_ids.device) for a in (data.items[index], recency, offsets))
    rows = torch.arange(len(index), device=packed.device)
    tokens = PathwayInput.of_items(data.device_ids[item], position, rows)
    return ContextInput(pathways=(tokens,), context_offsets=packed, max_tokens=int(lengths.max(initial=0)))


def evaluate(
    model: OneRecV2, data: Sequences, users: IntArray, from_end: int, history: int, beam: int, chunk: int
) -> dict[str, float]:
    """R@k and N@k of each user's item `from_end` places before the end, full ranking by constrained beam search."""
    all_first, all_target = data.targets(from_end)
    ranks = []
    device = data.device_ids.device
    for at in range(0, len(users), chunk):
        first, target = all_first[users[at : at + chunk]], all_target[users[at : at + chunk]]
        owner = np.repeat(np.arange(len(first)), target - first)
        past = np.concatenate([data.items[a:b] for a, b in zip(first, target, strict=True)])
        excluded = Excluded(send(owner, device), send(past, device))
        context = make_context(data, first, target, history)
        found = beam_search(model, context, beam_width=beam, trie=data.trie, excluded=excluded, num_results=10)
        assert found.item_ids is not None
        hits = found.item_ids == send(data.items[target], device)[:, None]
        ranks.append(torch.where(hits.any(1), hits.int().argmax(1), 10).cpu().numpy())
    rank = np.concatenate(ranks)
    gain = 1.0 / np.log2(rank + 2.0)
    metrics = {}
    for k in (5, 10):
        metrics[f"R@{k}"] = float((rank < k).mean())
        metrics[f"N@{k}"] = float(np.where(rank < k, gain, 0.0).mean())
    return metrics
