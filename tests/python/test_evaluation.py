"""The metrics against their definitions, the data reader, masking, and the paired bootstrap."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from onerec_engine.evaluation import (
    Interactions,
    metrics,
    ndcg_at,
    paired_difference,
    rank_users,
    ranks_of,
    recall_at,
    sample_users,
)

ITEMS = np.array([5, 6, 7, 8, 1, 2, 3, 9, 4], np.uint16)
OFFSETS = np.array([0, 4, 7, 9], np.int32)


def write(path: Path, **arrays: Any) -> Path:
    np.savez(path, **({"items": ITEMS, "offsets": OFFSETS} | arrays))
    return path


def dcg(ranking: list[int], target: int, k: int) -> float:
    """From the definition: one relevant item, so the ideal gain is 1."""
    return sum(1 / math.log2(place + 1) for place, item in enumerate(ranking[:k], 1) if item == target)


def test_metrics_follow_their_definitions() -> None:
    rng = np.random.default_rng(0)
    rankings = np.stack([rng.permutation(40)[:12] for _ in range(500)]).astype(np.int64)
    targets = rng.integers(0, 40, 500)
    ranks = ranks_of(rankings, targets)
    for k in (1, 5, 10, 12):
        hits = [float(t in r[:k]) for r, t in zip(rankings.tolist(), targets.tolist(), strict=True)]
        gains = [dcg(r, t, k) for r, t in zip(rankings.tolist(), targets.tolist(), strict=True)]
        np.testing.assert_allclose(recall_at(ranks, k), hits)
        np.testing.assert_allclose(ndcg_at(ranks, k), gains)
        assert metrics(ranks, [k])[f"recall@{k}"] == pytest.approx(np.mean(hits))
        assert metrics(ranks, [k])[f"ndcg@{k}"] == pytest.approx(np.mean(gains))


def test_metrics_of_nobody_are_zero() -> None:
    assert metrics(np.empty(0, np.int64)) == {"recall@5": 0.0, "recall@10": 0.0, "ndcg@5": 0.0, "ndcg@10": 0.0}


def test_padding_is_never_a_hit() -> None:
    items = np.array([[3, -1, -1], [-1, -1, -1]])
    assert ranks_of(items, np.array([3, 7])).tolist() == [0, -1]


@pytest.mark.parametrize(
    ("name", "targets", "histories"),
    [("test", [8, 3, 4], [[5, 6, 7], [1, 2], [9]]), ("valid", [7, 2, 9], [[5, 6], [1], []])],
)
def test_splits(tmp_path: Path, name: Any, targets: list[int], histories: list[list[int]]) -> None:
    split = Interactions.load(write(tmp_path / "data.npz")).split(name)
    assert split.targets.tolist() == targets
    assert [split.history(u).tolist() for u in range(len(split))] == histories
    items, offsets = split.ragged(np.array([2, 0]))
    assert items.tolist() == histories[2] + histories[0]
    assert offsets.tolist() == [0, len(histories[2]), len(histories[2]) + len(histories[0])]


def test_users_without_a_target_are_left_out() -> None:
    data = Interactions.from_arrays({"items": np.array([1, 2, 3]), "offsets": np.array([0, 1, 1, 3])})
    assert data.split("test").targets.tolist() == [1, 3]
    assert data.split("valid").targets.tolist() == [2]


@pytest.mark.parametrize(
    "arrays",
    [
        {"offsets": np.array([0, 4, 7, 8])},
        {"offsets": np.array([0, 7, 4, 9])},
        {"offsets": np.array([1, 9])},
        {"offsets": np.empty(0, np.int64)},
        {"items": ITEMS.astype(np.float32)},
        {"items": ITEMS[None]},
        {"test_item": np.array([8, 3, 5])},
        {"valid_item": np.array([7, 2])},
    ],
)
def test_data_that_contradicts_itself_is_refused(tmp_path: Path, arrays: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^\[data\]"):
        Interactions.load(write(tmp_path / "data.npz", **arrays))


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    for name, content in (("a.npz", b"PK\x03\x04 damaged"), ("b.npz", b"text"), ("c.npz", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=r"^\[data\]"):
            Interactions.load(tmp_path / name)
    np.savez(tmp_path / "d.npz", items=np.array([{}], object), offsets=OFFSETS)
    with pytest.raises(ValueError, match=r"^\[data\]"):
        Interactions.load(tmp_path / "d.npz")
    np.save(tmp_path / "e.npy", ITEMS)
    with pytest.raises(ValueError, match=r"^\[data\]"):
        Interactions.load(tmp_path / "e.npy")
    np.savez(tmp_path / "f.npz", offsets=OFFSETS)
    with pytest.raises(ValueError, match="lacks items"):
        Interactions.load(tmp_path / "f.npz")


def test_samples_of_users() -> None:
    sample = sample_users(100, 10, seed=3)
    assert sample.tolist() == sorted(set(sample.tolist()))
    assert len(sample) == 10
    assert sample.tolist() == sample_users(100, 10, seed=3).tolist()
    assert sample.tolist() != sample_users(100, 10, seed=4).tolist()
    assert sample_users(7, None).tolist() == sample_users(7, 50).tolist() == list(range(7))
    with pytest.raises(ValueError, match="at least 1"):
        sample_users(7, 0)


class CountingEngine:
    """Recommends the items 0, 1, 2, ... that the history does not hold; at most `available` of them."""

    def __init__(self, available: int = 100) -> None:
        self.available = available
        self.calls: list[dict[str, Any]] = []

    def generate(self, batch: dict[str, Any], *, num_results: int, **options: Any) -> Any:
        self.calls.append(options)
        items = np.full((len(batch["offsets"]) - 1, num_results), -1, np.int64)
        for row, (first, last) in enumerate(zip(batch["offsets"][:-1], batch["offsets"][1:], strict=True)):
            own = set(batch["item_ids"][first:last].tolist())
            found = [item for item in range(100) if item not in own][: min(num_results, self.available)]
            items[row, : len(found)] = found
        return SimpleNamespace(items=items, logprobs=np.where(items >= 0, -items, -np.inf).astype(np.float32))


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_ranking_asks_for_unseen_items_in_batches(tmp_path: Path, batch_size: int) -> None:
    split = Interactions.load(write(tmp_path / "data.npz")).split("test")
    engine: Any = CountingEngine()
    done: list[int] = []
    users = np.arange(3)
    found = rank_users(engine, split, users, beam_width=7, num_results=10, batch_size=batch_size, progress=done.append)
    assert all(call == {"beam_width": 7, "exclude_history": True} for call in engine.calls)
    assert len(engine.calls) == math.ceil(3 / batch_size)
    assert sum(done) == 3
    # The target's rank among the unseen items 0, 1, 2, ...: 8 follows 0-4 of those not in {5, 6, 7}, and so on.
    assert found.ranks.tolist() == [5, 1, 4]
    assert found.items.shape == found.logprobs.shape == (3, 10)


def test_fewer_answers_than_asked_are_padded(tmp_path: Path) -> None:
    split = Interactions.load(write(tmp_path / "data.npz")).split("test")
    engine: Any = CountingEngine(available=2)
    found = rank_users(engine, split, np.arange(3), num_results=4)
    assert found.items[:, 2:].tolist() == [[-1, -1]] * 3
    assert np.isneginf(found.logprobs[:, 2:]).all()
    assert found.ranks.tolist() == [-1, 1, -1]


def test_bootstrap_agrees_with_resampling_one_by_one() -> None:
    rng = np.random.default_rng(1)
    a = (rng.random(400) < 0.3).astype(float)
    b = np.where(rng.random(400) < 0.1, 1 - a, a)
    result = paired_difference(a, b, samples=4000, seed=5)
    picks = rng.integers(0, 400, (4000, 400))
    low, high = np.quantile((b - a)[picks].mean(1), [0.025, 0.975])
    assert result.difference == pytest.approx(b.mean() - a.mean())
    assert result.low == pytest.approx(low, abs=0.004)
    assert result.high == pytest.approx(high, abs=0.004)
    assert result.discordant == int((a != b).sum())
    assert result == paired_difference(a, b, samples=4000, seed=5)


def test_bootstrap_of_equal_measurements_is_a_point() -> None:
    same = np.array([0.0, 1.0, 0.5])
    result = paired_difference(same, same)
    assert (result.difference, result.low, result.high, result.discordant) == (0.0, 0.0, 0.0, 0)


def test_bootstrap_wants_the_same_users() -> None:
    with pytest.raises(ValueError, match="same users"):
        paired_difference(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match="same users"):
        paired_difference(np.zeros(0), np.zeros(0))


@pytest.mark.beauty
def test_the_beauty_file_reads(beauty_path: Path) -> None:
    data = Interactions.load(beauty_path)
    split = data.split("test")
    assert len(split) == 22_363
    assert split.history(0).size + 1 == data.offsets[1]
