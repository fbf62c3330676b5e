"""One precision over all users, computed once and kept."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onerec_engine.catalogue import Catalogue
from onerec_engine.cli.options import PRECISIONS
from onerec_engine.cli.progress import bar
from onerec_engine.engine import Engine
from onerec_engine.evaluation import LeaveOneOut, UserRanks, rank_users

RESULTS = 50
FORCED = 10


@dataclass(frozen=True)
class Setting:
    """What is evaluated, and how."""

    checkpoint: Path
    data: Path
    cache: Path
    split: LeaveOneOut
    users: np.ndarray
    beam_width: int
    batch_size: int
    threads: int | None


@dataclass(frozen=True)
class Run:
    """One precision's answers.

    found: rankings, forced: log-probability of the forced tuples [users, FORCED + 1], NaN where there is none; the last
    is the target's.
    """

    precision: str
    found: UserRanks
    forced: np.ndarray


def run(setting: Setting, precision: str, baseline: Run | None) -> Run:
    """The answers of one precision, from the cache if they are there.

    baseline: the FP32 run, whose best answers are scored by every precision; None for that run itself.
    """
    file = setting.cache / f"{precision}-{_fingerprint(setting)}.npz"
    if file.is_file():
        print(f"{precision}: taken from {file}", file=sys.stderr)
        return _load(file, precision)
    limits: dict[str, Any] = {"max_batch": setting.batch_size, "max_beam_width": setting.beam_width}
    with Engine.from_checkpoint(
        setting.checkpoint, device="cpu", threads=setting.threads, **PRECISIONS[precision], **limits
    ) as engine:
        with bar(setting.users.size, f"{precision}: ranking", "users") as shown:
            found = rank_users(
                engine,
                setting.split,
                setting.users,
                beam_width=setting.beam_width,
                num_results=RESULTS,
                batch_size=setting.batch_size,
                progress=shown.update,
            )
        best = (baseline.found if baseline is not None else found).items[:, :FORCED]
        with bar(setting.users.size, f"{precision}: scoring", "users") as shown:
            forced = _score(engine, setting, best, shown.update)
    _save(file, found, forced)
    return _load(file, precision)


def _score(engine: Engine, setting: Setting, best: np.ndarray, progress: Callable[[int], object]) -> np.ndarray:
    """Log-probabilities of `best` items [users, FORCED] and of the targets, teacher-forced."""
    items = np.concatenate([best, setting.split.targets[setting.users][:, None]], axis=1)
    rows = engine.catalogue.find(items)
    codes = engine.catalogue.semantic_ids[np.maximum(rows, 0)]
    out = np.full(items.shape, np.nan)
    for first in range(0, len(items), setting.batch_size):
        part = slice(first, first + setting.batch_size)
        item_ids, offsets = setting.split.ragged(setting.users[part])
        scores = engine.score({"item_ids": item_ids, "offsets": offsets}, codes[part])
        out[part] = np.stack(scores)
        progress(len(items[part]))
    return np.where(rows >= 0, out, np.nan)


def _fingerprint(setting: Setting) -> str:
    """Changes with everything the answers depend on: model, data, users, search, compiled engine."""
    from onerec_engine import _C

    digest = hashlib.sha256()
    for file in [*sorted(setting.checkpoint.iterdir()), setting.data, Path(_C.__file__)]:
        if file.is_file():
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    digest.update(setting.users.tobytes())
    digest.update(f"{setting.beam_width} {RESULTS} {FORCED}".encode())
    return digest.hexdigest()[:16]


def _save(file: Path, found: UserRanks, forced: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name("partial-" + file.name)
    np.savez(
        partial,
        users=found.users,
        ranks=found.ranks,
        items=found.items,
        logprobs=found.logprobs,
        seconds=found.seconds,
        forced=forced,
    )
    partial.replace(file)


def _load(file: Path, precision: str) -> Run:
    with np.load(file) as a:
        found = UserRanks(a["users"], a["ranks"], a["items"], a["logprobs"], float(a["seconds"]))
        return Run(precision, found, a["forced"])


def check_targets(split: LeaveOneOut, users: np.ndarray, catalogue: Catalogue) -> int:
    """How many of the users' targets the catalogue does not have; they can never be found."""
    return int((catalogue.find(split.targets[users]) < 0).sum())
