"""Leave-one-out evaluation: interaction files, ranks per user, metrics, and paired comparisons.

The protocol is that of SASRec, TIGER and their successors: for each user the last item (``test``) or the last but one
(``valid``) is to be found by a full ranking over the catalogue from the items before it, which are themselves masked.
Ranks are kept per user, so that two precisions can be compared user by user and not only by their means.
"""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from onerec_engine.engine import Engine

__all__ = [
    "CUTOFFS",
    "Interactions",
    "LeaveOneOut",
    "Paired",
    "UserRanks",
    "metrics",
    "ndcg_at",
    "paired_difference",
    "rank_users",
    "ranks_of",
    "recall_at",
    "sample_users",
]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

CUTOFFS = (5, 10)
"""The cutoffs at which recall and NDCG are reported."""


@dataclass(frozen=True, slots=True)
class LeaveOneOut:
    """One split of an interaction file: what each user had seen, and the item to be found.

    Attributes:
        items: int64, the histories one after another, oldest item first.
        starts: int64 [users].
        ends: int64 [users]; user u had seen items[starts[u] : ends[u]].
        targets: int64 [users].
    """

    items: Ints
    starts: Ints
    ends: Ints
    targets: Ints

    def __len__(self) -> int:
        return int(self.targets.size)

    def history(self, user: int) -> Ints:
        """The items user `user` had seen before the target, oldest first."""
        return self.items[self.starts[user] : self.ends[user]]

    def ragged(self, users: Ints) -> tuple[Ints, Ints]:
        """The histories of `users` packed for `Engine.generate`.

        Returns:
            item ids and offsets [users + 1].
        """
        parts = [self.history(int(u)) for u in users]
        offsets = np.zeros(len(parts) + 1, np.int64)
        np.cumsum([p.size for p in parts], out=offsets[1:])
        return (np.concatenate(parts) if parts else np.empty(0, np.int64)), offsets


@dataclass(frozen=True, slots=True)
class Interactions:
    """All users' interactions, oldest first.

    Attributes:
        items: int64 item ids, every user's one after another.
        offsets: int64 [users + 1].
    """

    items: Ints
    offsets: Ints

    @staticmethod
    def load(path: str | Path) -> Interactions:
        """Reads an ``.npz`` file with arrays ``items`` and ``offsets``.

        Where the file also has ``test_item`` or ``valid_item``, they must be the users' last and last but one items.

        Raises:
            ValueError: if the file is no such file.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in ("items", "offsets", "test_item", "valid_item") if name in file}
        except (zipfile.BadZipFile, ValueError, EOFError, AttributeError, TypeError) as error:
            raise ValueError(f"[data] {path} is no .npz file of plain arrays: {error}.") from None
        return Interactions.from_arrays(arrays, str(path))

    @staticmethod
    def from_arrays(arrays: Mapping[str, npt.NDArray[np.generic]], where: str = "the data") -> Interactions:
        """Checks arrays named as in an interaction file.

        Raises:
            ValueError: if they contradict each other.
        """
        missing = [name for name in ("items", "offsets") if name not in arrays]
        if missing:
            raise ValueError(
                f"[data] {where} lacks {' and '.join(missing)}. Want arrays items [n] and offsets [users + 1]."
            )
        for name, array in arrays.items():
            if array.dtype.kind not in "iu" or array.ndim != 1:
                raise ValueError(f"[data] {where}: got {name} of {array.dtype} {list(array.shape)}, want integers [n].")
        items, offsets = arrays["items"].astype(np.int64), arrays["offsets"].astype(np.int64)
        if offsets.size == 0 or offsets[0] != 0 or offsets[-1] != items.size or np.any(np.diff(offsets) < 0):
            raise ValueError(f"[data] {where}: offsets do not run from 0 to {items.size} without falling.")
        for name, back in (("test_item", 1), ("valid_item", 2)):
            owners = np.flatnonzero(np.diff(offsets) >= back)
            if name not in arrays:
                continue
            stated = arrays[name]
            if stated.size != offsets.size - 1 or np.any(stated[owners] != items[offsets[owners + 1] - back]):
                raise ValueError(f"[data] {where}: {name} is not every user's item no. {back} from the end.")
        return Interactions(items, offsets)

    def split(self, name: Literal["test", "valid"]) -> LeaveOneOut:
        """Users with an item to be found, and what they had seen before it.

        Args:
            name: ``test`` holds out the last item; ``valid`` drops the last and holds out the one before.
        """
        back = {"test": 1, "valid": 2}[name]
        users = np.flatnonzero(np.diff(self.offsets) >= back)
        ends = self.offsets[users + 1] - back
        return LeaveOneOut(self.items, self.offsets[users], ends, self.items[ends])


@dataclass(frozen=True, slots=True)
class UserRanks:
    """What an engine answered for a number of users.

    Attributes:
        users: int64 [n], indices into the split.
        ranks: int64 [n], the target's position among the answers, from 0; -1 where it is not among them.
        items: int64 [n, k], the answers, -1 where there were fewer.
        logprobs: float64 [n, k], their scores, -inf where there were fewer.
        seconds: time spent generating.
    """

    users: Ints
    ranks: Ints
    items: Ints
    logprobs: Floats
    seconds: float


def sample_users(total: int, count: int | None, seed: int = 0) -> Ints:
    """All of `total` users, or a seeded sample of `count` of them in ascending order.

    Raises:
        ValueError: if `count` is not positive.
    """
    if count is not None and count < 1:
        raise ValueError(f"[evaluate] got {count} users, want at least 1.")
    if count is None or count >= total:
        return np.arange(total, dtype=np.int64)
    return np.sort(np.random.default_rng(seed).choice(total, count, replace=False)).astype(np.int64)


def ranks_of(items: Ints, targets: Ints) -> Ints:
    """The position of each row's target in `items` [n, k], from 0; -1 where it is absent."""
    found = items == targets[:, None]
    return np.where(found.any(axis=1), found.argmax(axis=1), -1).astype(np.int64)


def recall_at(ranks: Ints, k: int) -> Floats:
    """Per user, 1 if the target is among the first `k` answers, else 0."""
    return ((ranks >= 0) & (ranks < k)).astype(np.float64)


def ndcg_at(ranks: Ints, k: int) -> Floats:
    """Per user, the normalised discounted cumulative gain at `k` of one relevant item: 1 / log2(rank + 2) if found."""
    return np.where(recall_at(ranks, k) > 0, 1.0 / np.log2(np.maximum(ranks, 0) + 2.0), 0.0)


def metrics(ranks: Ints, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, float]:
    """Means over users, as ``recall@k`` and ``ndcg@k``; 0 for no users."""
    out = {}
    for name, per_user in (("recall", recall_at), ("ndcg", ndcg_at)):
        for k in cutoffs:
            out[f"{name}@{k}"] = float(per_user(ranks, k).mean()) if ranks.size else 0.0
    return out


def rank_users(
    engine: Engine,
    split: LeaveOneOut,
    users: Ints,
    *,
    beam_width: int | Sequence[int] | None = None,
    num_results: int = 10,
    batch_size: int = 64,
    progress: Callable[[int], object] | None = None,
) -> UserRanks:
    """Generates for `users` with their own histories masked and finds each target among the answers.

    Args:
        engine: the engine.
        split: the histories and targets.
        users: indices into the split.
        beam_width: as for `Engine.generate`.
        num_results: answers per user, at least the largest cutoff of interest and at most the last beam width.
        batch_size: users per call.
        progress: called with the number of users done since the last call.
    """
    items = np.full((users.size, num_results), -1, np.int64)
    logprobs = np.full((users.size, num_results), -np.inf, np.float64)
    seconds = 0.0
    for first in range(0, users.size, batch_size):
        rows = slice(first, min(first + batch_size, users.size))
        item_ids, offsets = split.ragged(users[rows])
        started = time.perf_counter()
        results = engine.generate(
            {"item_ids": item_ids, "offsets": offsets},
            beam_width=beam_width,
            num_results=num_results,
            exclude_history=True,
        )
        seconds += time.perf_counter() - started
        items[rows, : results.items.shape[1]] = results.items
        logprobs[rows, : results.logprobs.shape[1]] = results.logprobs
        if progress is not None:
            progress(rows.stop - rows.start)
    return UserRanks(users, ranks_of(items, split.targets[users]), items, logprobs, seconds)


@dataclass(frozen=True, slots=True)
class Paired:
    """A difference of means over the same users, with its percentile bootstrap interval.

    Attributes:
        difference: mean(b) - mean(a).
        low: lower end of the interval.
        high: upper end.
        discordant: users for whom a and b differ.
    """

    difference: float
    low: float
    high: float
    discordant: int


def paired_difference(a: Floats, b: Floats, *, level: float = 0.95, samples: int = 10_000, seed: int = 0) -> Paired:
    """Compares two measurements of the same users by a paired bootstrap over users.

    Per-user differences of recall and NDCG take few distinct values, so a resample of n users is drawn as one
    multinomial over those values: the same distribution as drawing n users one by one.

    Args:
        a: the baseline, one value per user.
        b: what is compared with it.
        level: coverage of the interval.
        samples: bootstrap samples.
        seed: of the resampling.

    Raises:
        ValueError: if there are no users or the lengths differ.
    """
    if a.shape != b.shape or a.ndim != 1 or a.size == 0:
        raise ValueError(
            f"[evaluate] got measurements of shapes {a.shape} and {b.shape}, want the same users, at least 1."
        )
    values, counts = np.unique(b - a, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(a.size, counts / a.size, size=samples)
    low, high = np.quantile(drawn @ values / a.size, [(1 - level) / 2, (1 + level) / 2])
    discordant = int(counts[values != 0].sum())
    return Paired(float((b - a).mean()), float(low), float(high), discordant)
