"""The engine from outside: search against scoring, unconstrained search, several items per semantic id."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_support import agree, ranking, requests
from support import EVERYTHING, MOE, tiny_config, write_checkpoint

from onerec_engine import (
    Engine,
    Request,
)

LEVELS = 3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("engine") / "plain", items=60)


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Iterator[Engine]:
    with Engine.from_checkpoint(checkpoint, threads=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path = write_checkpoint(tmp_path_factory.mktemp("engine") / "rich", tiny_config(**EVERYTHING), items=60)
    with Engine.from_checkpoint(path, threads=1) as engine:
        yield engine


# --- search ---


def test_wide_beams_find_everything_in_order(engine: Engine) -> None:
    for request in requests(engine, 6):
        result = engine.generate([request], beam_width=400, num_results=60)[0]
        agree(result, ranking(engine, request))
        assert result.complete
        assert result.legal.all()


def test_search_of_every_kind_of_input(rich: Engine) -> None:
    ids = rich.catalogue.item_ids
    batch = [
        Request(
            history=ids[3:6],
            features={
                "user.age": 4,
                "user.stats": [0.5, -1.0, 2.0],
                "recent.action": [0, 1, 4],
                "recent.seconds": [0.0, 1.0, -1.0],
                "long_term": ids[10:30],
            },
        ),
        Request(features={"user.age": 0, "user.stats": [0, 0, 0], "long_term": []}),
    ]
    results = rich.generate(batch, beam_width=400, num_results=30)
    for request, result in zip(batch, results, strict=True):
        agree(result, ranking(rich, request))
    changed = Request(history=ids[3:6], features=dict(batch[0].features) | {"user.age": 5})
    assert (rich.score([changed], [results[0].semantic_ids])[0] != results[0].logprobs).any()


def test_scores_of_the_search_are_those_of_score(engine: Engine) -> None:
    batch = requests(engine, 7)
    results = engine.generate(batch, beam_width=[8, 20, 30], num_results=12)
    scores = engine.score(batch, [result.semantic_ids for result in results])
    for result, score in zip(results, scores, strict=True):
        np.testing.assert_allclose(result.logprobs, score, atol=2e-5)
        assert score.dtype == np.float32


def test_probabilities_of_all_tuples_add_up(tmp_path: Path) -> None:
    config = tiny_config(codebook_sizes=[3, 4, 2])
    path = write_checkpoint(tmp_path, config)
    everything = np.stack(np.unravel_index(np.arange(24), (3, 4, 2)), axis=1)
    with Engine.from_checkpoint(path, threads=1) as engine:
        scores = engine.score([Request(history=engine.catalogue.item_ids[:4])], [everything])[0]
    assert np.exp(scores.astype(np.float64)).sum() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("levels", [1, 2, 8])
def test_other_numbers_of_levels(levels: int, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, tiny_config(codebook_sizes=[5] * levels), items=20)
    with Engine.from_checkpoint(path, threads=1) as engine:
        request = Request(history=engine.catalogue.item_ids[:3])
        agree(engine.generate([request], beam_width=50, num_results=20)[0], ranking(engine, request))


@pytest.mark.parametrize(("quantization", "precision"), [(None, "bf16"), ("fp8", None), ("fp8_channel", None)])
def test_other_precisions(quantization: str | None, precision: str | None, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, tiny_config(**MOE), items=60)
    with (
        Engine.from_checkpoint(path, threads=1) as plain,
        Engine.from_checkpoint(path, threads=1, quantization=quantization, precision=precision) as engine,
    ):
        assert plain.precision == "fp32"
        assert (engine.precision, engine.quantization) == (precision or "fp8", quantization)
        batch = requests(plain, 3)
        semantic_ids = [plain.catalogue.semantic_ids] * 3
        ours, exact = engine.score(batch, semantic_ids), plain.score(batch, semantic_ids)
        difference = np.abs(np.concatenate(ours) - np.concatenate(exact))
        assert 0 < difference.mean() < 0.3
        assert difference.max() < 2


# --- several items per semantic id ---


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    rng = np.random.default_rng(5)
    codes = np.column_stack([rng.integers(0, 3, 40) for _ in range(LEVELS)])
    path = tmp_path_factory.mktemp("engine") / "twins"
    write_checkpoint(path, catalogue=(rng.permutation(1000)[:40] - 500, codes))
    with Engine.from_checkpoint(path, threads=1) as engine:
        yield engine


def test_items_of_one_semantic_id_by_ascending_id(twins: Engine) -> None:
    assert len(np.unique(twins.catalogue.semantic_ids, axis=0)) < 30
    for count in (1, 2, 3, 7, 40):
        request = Request(history=twins.catalogue.item_ids[:4])
        agree(twins.generate([request], beam_width=60, num_results=count)[0], ranking(twins, request))


def test_excluded_twins(twins: Engine) -> None:
    _, inverse, counts = np.unique(twins.catalogue.semantic_ids, axis=0, return_inverse=True, return_counts=True)
    ids = twins.catalogue.item_ids
    crowd = ids[inverse.reshape(-1) == counts.argmax()].tolist()
    for gone in (crowd[:1], crowd[-1:], crowd[1:], crowd):
        request = Request(exclude=gone)
        result = twins.generate([request], beam_width=60, num_results=40)[0]
        agree(result, ranking(twins, request, set(gone)))


# --- unconstrained ---


def test_unconstrained_finds_all_tuples(engine: Engine) -> None:
    request = requests(engine, 1)[0]
    everything = np.stack(np.unravel_index(np.arange(8 * 6 * 7), (8, 6, 7)), axis=1)
    scores = engine.score([request], [everything])[0]
    result = engine.generate([request], beam_width=8 * 6 * 7, num_results=50, constrained=False)[0]
    np.testing.assert_allclose(result.logprobs, -np.sort(-scores)[:50], atol=2e-5)
    known = {tuple(codes): [] for codes in engine.catalogue.semantic_ids.tolist()}
    for item, codes in zip(engine.catalogue.item_ids.tolist(), engine.catalogue.semantic_ids.tolist(), strict=True):
        known[tuple(codes)].append(item)
    assert 0 < result.legal.sum() < 50
    for item, codes, legal in zip(result.items.tolist(), result.semantic_ids.tolist(), result.legal, strict=True):
        assert legal == (tuple(codes) in known)
        assert item in known[tuple(codes)] if legal else item == -1


def test_unconstrained_leaves_excluded_items_out(twins: Engine) -> None:
    width = 8 * 6 * 7
    every = twins.generate([Request()], beam_width=width, num_results=width, constrained=False)[0]
    gone = every.items[every.legal][::2]
    rest = twins.generate([Request(exclude=gone)], beam_width=width, num_results=width, constrained=False)[0]
    keep = ~(every.legal & np.isin(every.items, gone))
    # The first `width` results were asked for, so less of what was excluded lets further ones in.
    np.testing.assert_array_equal(rest.items[: keep.sum()], every.items[keep])
    np.testing.assert_array_equal(rest.logprobs[: keep.sum()], every.logprobs[keep])


# --- score ---


def test_score_shapes(engine: Engine) -> None:
    batch = requests(engine, 3)
    rng = np.random.default_rng(0)
    array = np.stack([rng.integers(0, size, (3, 4)) for size in (8, 6, 7)], axis=-1)
    scores = engine.score(batch, array)
    assert [s.shape for s in scores] == [(4,)] * 3
    ragged = engine.score(batch, [array[0], [], torch.from_numpy(array[2, :2])])
    assert [s.shape for s in ragged] == [(4,), (0,), (2,)]
    np.testing.assert_allclose(ragged[0], scores[0], atol=1e-5)
    np.testing.assert_allclose(ragged[2], scores[2][:2], atol=1e-5)
    assert engine.score(batch, [[], [], []])[1].shape == (0,)


@pytest.mark.parametrize(
    ("semantic_ids", "message"),
    [
        ([[[0, 0, 0]]], "for 1 requests, want 2"),
        (3, "got int"),
        ([[[0, 0, 0]], [[0, 0]]], r"request 1: got semantic_ids of shape \[1, 2\]"),
        ([[[0, 0, 0]], [0, 0, 0]], "request 1: got semantic_ids of shape"),
        ([[[0, 0, 0]], [[0, 6, 0]]], r"request 1: got semantic id \[0, 6, 0\], want codes below \[8, 6, 7\]"),
        ([[[0, 0, -1]], [[0, 0, 0]]], "request 0: got semantic id"),
        ([[[0, 0, 0]], [[0.5, 0, 0]]], "request 1: semantic_ids: got float64"),
    ],
)
def test_score_errors(engine: Engine, semantic_ids: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"\[score\] .*{message}"):
        engine.score([Request(), Request()], semantic_ids)


def test_tapped_scores_are_the_scores(engine: Engine) -> None:
    batch, semantic_ids = requests(engine, 2), [engine.catalogue.semantic_ids[:5]] * 2
    scores, operands = engine.score_tapped(batch, semantic_ids)
    np.testing.assert_array_equal(scores, engine.score(batch, semantic_ids))
    names = {name for name, _, _ in operands}
    assert any("self_attn" in name for name in names)
    assert all(values.ndim == 2 for _, values, _ in operands)
