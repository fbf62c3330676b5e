"""The engine's answers depend on the request alone: not on the recording, old memory, the batch, or other threads."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from engine_case import PRECISIONS, SIZED_MOE, captured_runs, open_engine, sized_model  # noqa: E402
from model_case import Case  # noqa: E402
from model_grid import MOE, NAMED, small_config  # noqa: E402

from onerec_engine.engine import Engine  # noqa: E402
from onerec_engine.request import Request  # noqa: E402
from onerec_engine.result import BatchResult  # noqa: E402

LENGTHS = [3, 0, 12, 1, 5, 7, 2]
CONFIGS = {
    "dense": NAMED["everything"],
    "moe": small_config(**(MOE | {"n_routed_experts": 5, "num_experts_per_tok": 3}), num_key_value_heads=2),
    "blocks": NAMED["blocks"],
    "one_level": NAMED["one_level"],
}


def mixed_case(name: str) -> Case:
    """A model of `CONFIGS` with requests of all kinds in one batch."""
    case = Case(CONFIGS[name], seed=10, lengths=LENGTHS, tuples=4)
    mixed: list[dict[str, Any]] = [
        {},
        {"beam_width": 3, "num_results": 2},
        {"constrained": False, "exclude": case.items.ids[:9]},
        {"exclude": case.items.ids[::2]},
        {"beam_width": 17, "num_results": 17, "exclude_history": True},
        {"constrained": False, "beam_width": 1, "num_results": 1},
        {"exclude": case.items.ids},
    ]
    case.requests = [
        Request(history=r.history, features=r.features, **changes)
        for r, changes in zip(case.requests, mixed, strict=True)
    ]
    return case


@pytest.fixture(scope="module", params=[(name, p) for name in CONFIGS for p in PRECISIONS], ids="-".join)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    name, precision = request.param
    case = mixed_case(name)
    with open_engine(case, tmp_path_factory.mktemp("model"), precision, max_batch=16) as engine:
        yield case, engine


def same_bits(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.dtype == other[name].dtype
        assert array.tobytes() == other[name].tobytes(), name


def same_results(one: Sequence[Any], other: Sequence[Any]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.items, b.items)
        np.testing.assert_array_equal(a.semantic_ids, b.semantic_ids)
        np.testing.assert_array_equal(a.logprobs.view(np.uint32), b.logprobs.view(np.uint32))
        np.testing.assert_array_equal(a.legal, b.legal)


def search(engine: Engine, requests: list[Request]) -> BatchResult:
    return engine.generate(requests, beam_width=8, num_results=8)


def batches(case: Case, engine: Engine) -> list[dict[str, np.ndarray]]:
    """Searches and scorings of several sizes as the compiled core gets them."""
    with captured_runs(engine) as seen:
        search(engine, case.requests)
        search(engine, case.requests[2:3])
        search(engine, case.requests[1:5])
        engine.score(case.requests, case.tuples)
        engine.score(case.requests[:2], case.tuples[:2])
    assert len(seen) == 5
    return seen


def test_recorded_equals_direct(opened: tuple[Case, Engine]):
    case, engine = opened
    for batch in batches(case, engine):
        recorded = engine._core.run(batch)
        same_bits(recorded, engine._core.run_directly(batch))
        same_bits(recorded, engine._core.run_tapped(batch)[0])
        same_bits(recorded, engine._core.run(batch))


def test_what_lay_in_memory_before_does_not_show(opened: tuple[Case, Engine]):
    case, engine = opened
    seen = batches(case, engine)
    want = [engine._core.run(batch) for batch in seen]
    for value in (0xFF, 0, 0x7F):
        for batch, result in zip(seen, want, strict=True):
            engine._core.poison(value)
            same_bits(engine._core.run(batch), result)
            engine._core.poison(value)
            same_bits(engine._core.run_directly(batch), result)


def test_a_request_does_not_see_its_batch(opened: tuple[Case, Engine]):
    case, engine = opened
    whole = search(engine, case.requests)
    alone = [search(engine, [request])[0] for request in case.requests]
    same_results(whole, alone)
    order = [4, 1, 6, 0, 3, 5, 2]
    same_results(search(engine, [case.requests[b] for b in order]), [alone[b] for b in order])
    same_results(search(engine, case.requests * 3), alone * 3)
    scores = engine.score(case.requests, case.tuples)
    for b, request in enumerate(case.requests):
        np.testing.assert_array_equal(engine.score([request], case.tuples[b : b + 1])[0], scores[b])
        for n in range(case.tuples.shape[1]):
            np.testing.assert_array_equal(engine.score([request], case.tuples[b : b + 1, n : n + 1])[0], scores[b][n])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_request_does_not_see_a_large_batch(tmp_path: Path, precision: str):
    """Matrices of one row to 600, for which libraries like to choose different kernels."""
    case = Case(small_config(**sized_model(**SIZED_MOE)), seed=4, lengths=[20, 0, 7, 13, 3] * 8, tuples=15)
    with open_engine(case, tmp_path, precision) as engine:
        whole = engine.score(case.requests, case.tuples)
        for b, count in itertools.product([0, 7, 39], [1, 2, 5, 15]):
            alone = engine.score(case.requests[b : b + 1], case.tuples[b : b + 1, :count])[0]
            np.testing.assert_array_equal(alone, whole[b][:count])
        some = engine.score(case.requests[:9], case.tuples[:9])
        np.testing.assert_array_equal(np.stack(some), np.stack(whole[:9]))


@pytest.mark.parametrize("precision", ["fp32", "fp8"])
def test_threads_get_the_serial_answers(tmp_path: Path, precision: str):
    case = Case(NAMED["moe_raw_scores"], seed=11, lengths=LENGTHS, tuples=4)
    with open_engine(case, tmp_path, precision, max_batch=3) as engine:
        parts = [case.requests[i:j] for i in range(7) for j in range(i + 1, 8)]
        serial = [search(engine, part) for part in parts]
        scores = engine.score(case.requests, case.tuples)
        ready = threading.Barrier(6)

        def work(seed: int) -> None:
            ready.wait()
            for i in np.random.default_rng(seed).permutation(len(parts)):
                same_results(search(engine, parts[i]), serial[i])
                if i % 5 == 0:
                    for got, want in zip(engine.score(case.requests, case.tuples), scores, strict=True):
                        np.testing.assert_array_equal(got, want)

        with ThreadPoolExecutor(6) as pool:
            for done in [pool.submit(work, seed) for seed in range(6)]:
                done.result()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["moe", "blocks"])
def test_the_number_of_threads_does_not_show(tmp_path: Path, name: str, precision: str):
    case = Case(CONFIGS[name], seed=12, lengths=LENGTHS, tuples=9)
    scores = []
    for threads in (1, 2):
        with open_engine(case, tmp_path / str(threads), precision, threads=threads) as engine:
            scores.append(np.stack(engine.score(case.requests, case.tuples)))
    for other in scores[1:]:
        assert np.abs(other - scores[0]).max() <= (2e-5 if precision == "fp32" else 2e-2)


def test_calls_are_cut_into_runs_without_a_trace(tmp_path: Path):
    case = Case(NAMED["everything"], seed=13, lengths=LENGTHS * 3, tuples=2)
    answers = []
    for limits in ({"max_batch": 64}, {"max_batch": 4}, {"max_batch": 1}, {"max_batch": 3, "max_rows": 128}):
        with open_engine(case, tmp_path / str(len(answers)), **limits) as engine, captured_runs(engine) as runs:
            answers.append((search(engine, case.requests), engine.score(case.requests, case.tuples)))
            assert len(runs) >= 2 * len(case.requests) / limits["max_batch"]
    for found, scores in answers[1:]:
        same_results(found, answers[0][0])
        np.testing.assert_array_equal(np.stack(scores), np.stack(answers[0][1]))
