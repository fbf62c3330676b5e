"""Every precision over all users, in several processes, computed once and kept."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
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
BLOCK = 256  # users that a process takes at a time on a CPU


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
    precisions: tuple[str, ...]
    device: str = "cpu"


@dataclass(frozen=True)
class Run:
    """One precision's answers.

    found: rankings, forced: log-probability of the forced tuples [users, FORCED + 1], NaN where there is none; the last
    is the target's.
    """

    precision: str
    found: UserRanks
    forced: np.ndarray


def run_all(settings: Sequence[Setting], jobs: int) -> list[list[Run]]:
    """For every setting, the answers of its precisions, FP32 first.

    The users are cut into blocks and `jobs` processes of one thread each take block after block; on a GPU, where an
    engine takes longer to load, there are as many blocks as processes. A block's precisions follow one another in the
    same process, because FP32's best answers are what the others score.
    """
    blocks = []
    for number, setting in enumerate(settings):
        step = BLOCK if setting.device == "cpu" else -(-setting.users.size // jobs)
        for first in range(0, setting.users.size, step):
            blocks.append((number, replace(setting, users=setting.users[first : first + step])))
    context = multiprocessing.get_context("spawn")
    answered: list[list[list[Run]]] = [[] for _ in settings]
    total = sum(setting.users.size * len(setting.precisions) for setting in settings)
    with ProcessPoolExecutor(jobs, context) as pool, bar(total, "ranking and scoring", "answers") as shown:
        futures = [pool.submit(_run_block, setting) for _, setting in blocks]
        try:
            for future in as_completed(futures):
                shown.update(sum(run.found.users.size for run in future.result()))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        for (number, _), future in zip(blocks, futures, strict=True):
            answered[number].append(future.result())
    return [[_joined(runs) for runs in zip(*parts, strict=True)] for parts in answered]


def _run_block(setting: Setting) -> list[Run]:
    runs: list[Run] = []
    for precision in setting.precisions:
        runs.append(_run(setting, precision, runs[0] if runs else None))
    return runs


def _run(setting: Setting, precision: str, baseline: Run | None) -> Run:
    """The answers of one precision, from the cache if they are there.

    baseline: the FP32 run, whose best answers are scored by every precision; None for that run itself.
    """
    file = setting.cache / f"{setting.device}-{precision}-{_fingerprint(setting)}.npz"
    if file.is_file():
        return _load(file, precision)
    limits: dict[str, Any] = {"max_batch": setting.batch_size, "max_beam_width": setting.beam_width}
    with Engine.from_checkpoint(
        setting.checkpoint, device=setting.device, threads=1, **PRECISIONS[precision], **limits
    ) as engine:
        found = rank_users(
            engine,
            setting.split,
            setting.users,
            beam_width=setting.beam_width,
            num_results=RESULTS,
            batch_size=setting.batch_size,
        )
        best = (baseline.found if baseline is not None else found).items[:, :FORCED]
        forced = _score(engine, setting, best)
    _save(file, found, forced)
    return _load(file, precision)


def _joined(runs: Sequence[Run]) -> Run:
    """The same precision's runs over blocks of users as one."""
    found = UserRanks(
        *(
            np.concatenate([getattr(run.found, name) for run in runs])
            for name in ("users", "ranks", "items", "logprobs")
        ),
        seconds=sum(run.found.seconds for run in runs),
    )
    return Run(runs[0].precision, found, np.concatenate([run.forced for run in runs]))


def _score(engine: Engine, setting: Setting, best: np.ndarray) -> np.ndarray:
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
    return np.where(rows >= 0, out, np.nan)


def _fingerprint(setting: Setting) -> str:
    """Changes with everything the answers depend on: model, data, users, search, the engine and its Python side."""
    from onerec_engine import _C

    engine = Path(_C.__file__)
    digest = hashlib.sha256()
    for file in [*sorted(setting.checkpoint.iterdir()), setting.data, engine, *sorted(engine.parent.glob("*.py"))]:
        if file.is_file():
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    digest.update(setting.users.tobytes())
    digest.update(f"{setting.beam_width} {RESULTS} {FORCED}".encode())
    return digest.hexdigest()[:16]


def _save(file: Path, found: UserRanks, forced: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name("partial-" + file.name)
    np.savez_compressed(
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
