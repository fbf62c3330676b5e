"""Limits, memory, determinism, threads, and the end of an engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_support import equal, items_of, requests
from support import EVERYTHING, pathway, random_weights, tiny_config, write_checkpoint

from onerec_engine import (
    Engine,
    EngineClosedError,
    EngineError,
    OutOfMemoryPlanError,
    Request,
    build_info,
)


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


# --- limits ---


def test_long_calls_are_cut_into_runs(engine: Engine, checkpoint: Path) -> None:
    rng = np.random.default_rng(0)
    batch = [
        Request(
            history=rng.choice(engine.catalogue.item_ids, rng.integers(0, 12)),
            beam_width=int(rng.integers(1, 40)),
            num_results=1,
            exclude_history=bool(rng.integers(2)),
            request_id=i,
        )
        for i in range(150)
    ]
    whole = engine.generate(batch)
    assert [r.request_id for r in whole] == list(range(150))
    with Engine.from_checkpoint(checkpoint, threads=1, max_batch=3, max_beam_width=40, max_rows=50) as small:
        parts = small.generate(batch)
        np.testing.assert_array_equal(parts.items, whole.items)
        np.testing.assert_allclose(parts.logprobs, whole.logprobs, atol=1e-5)
        many = np.repeat(engine.catalogue.semantic_ids, 3, axis=0)
        np.testing.assert_allclose(
            small.score(batch[:2], [many, many[:7]])[0], engine.score(batch[:1], [many])[0], atol=1e-5
        )


def test_max_context(engine: Engine, checkpoint: Path) -> None:
    ids = items_of(engine, *range(6))
    with Engine.from_checkpoint(checkpoint, threads=1, max_context=2) as short:
        result = short.generate([Request(history=ids)])[0]
        assert result.truncated == 4
        want = engine.generate([Request(history=ids[-2:])])[0]
        np.testing.assert_array_equal(result.items, want.items)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_batch": 0}, "max_batch 0, want a positive integer"),
        ({"max_beam_width": 2.5}, "max_beam_width 2.5"),
        ({"threads": True}, "threads True"),
        ({"threads": -1}, "threads -1"),
        ({"max_context": 0}, "max_context 0"),
        ({"max_rows": 10}, "max_rows 10, want at least"),
        ({"memory_limit": 0}, "memory_limit 0"),
        ({"device": "tpu"}, "device 'tpu'"),
    ],
)
def test_argument_errors(checkpoint: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Engine.from_checkpoint(checkpoint, **arguments)


@pytest.mark.skipif(not build_info()["cuda"].startswith("off"), reason="this build has CUDA")
def test_cuda_is_refused_with_the_reason(checkpoint: Path) -> None:
    with pytest.raises(EngineError, match="off: "):
        Engine.from_checkpoint(checkpoint, device="cuda")


def test_defaults_of_the_checkpoint(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, items=60, generation={"beam_width": [4, 8, 16], "num_results": 7})
    with Engine.from_checkpoint(path, threads=1) as engine:
        default = engine.generate([Request()])
        assert default.requested.tolist() == [7]
        equal(default, engine.generate([Request()], beam_width=[4, 8, 16], num_results=7))
        assert engine.generate([Request()], beam_width=3).requested.tolist() == [3]
    with Engine.from_checkpoint(path, threads=1, max_beam_width=5) as engine:
        assert engine.generate([Request()]).requested.tolist() == [5]


# --- memory ---


def test_memory_plan_adds_up(checkpoint: Path) -> None:
    plans = []
    for width in (8, 256):
        with Engine.from_checkpoint(checkpoint, threads=1, max_batch=4, max_beam_width=width) as engine:
            plans.append(engine.memory_plan())
    for plan in plans:
        assert {"weights", "catalogue", "context_kv", "beam_state", "workspace"} <= plan.keys()
        assert all(size >= 0 for size in plan.values())
    assert plans[0]["weights"] == plans[1]["weights"]
    assert sum(plans[0].values()) < sum(plans[1].values())


def test_memory_plan_of_static_pathways_and_small_limits(rich: Engine, tmp_path: Path) -> None:
    assert rich.memory_plan()["weights"] > 0
    path = write_checkpoint(tmp_path, tiny_config(pathways=[pathway(max_tokens=3), pathway("b", max_tokens=5)]))
    with Engine.from_checkpoint(path, threads=1, max_batch=7, max_beam_width=3, max_rows=8, max_context=4) as engine:
        assert sum(engine.memory_plan().values()) > 0


def test_a_plan_that_does_not_fit(checkpoint: Path) -> None:
    with pytest.raises(OutOfMemoryPlanError, match=r"weights need at least .* MiB"):
        Engine.from_checkpoint(checkpoint, threads=1, memory_limit=1000)
    with Engine.from_checkpoint(checkpoint, threads=1, memory_limit=500_000) as engine:
        wide = [Request(beam_width=1000, num_results=1, constrained=False)] * 4
        with pytest.raises(OutOfMemoryPlanError, match=r"this batch needs .* MiB"):
            engine.generate(wide)
        assert len(engine.generate([Request()], beam_width=4, num_results=4)[0]) == 4


def test_scores_that_are_not_finite_name_the_request(tmp_path: Path) -> None:
    config = tiny_config()
    weights = random_weights(config)
    weights["context.semantic_id_embeddings.0.weight"][5] = np.nan
    codes = np.array([[0, 0, 0], [5, 1, 1], [2, 2, 2]])
    path = write_checkpoint(tmp_path, config, weights=weights, catalogue=(np.arange(3), codes))
    with Engine.from_checkpoint(path, threads=1) as engine:
        batch = [Request(history=[0]), Request(history=[2]), Request(history=[1])]
        with pytest.raises(EngineError, match="request 2: got log-probabilities that are not finite"):
            engine.generate(batch)
        with pytest.raises(EngineError, match="request 2: "):
            engine.score(batch, [codes] * 3)
        assert engine.generate(batch[:2])[1].logprobs.size == 3


# --- determinism, threads, the end ---


def test_same_call_same_bits(engine: Engine) -> None:
    batch = requests(engine, 20)
    equal(engine.generate(batch), engine.generate(batch))


def test_a_request_does_not_depend_on_its_batch(engine: Engine) -> None:
    batch = requests(engine, 20)
    together = engine.generate(batch)
    for i in (0, 7, 19):
        alone = engine.generate([batch[i]])[0]
        np.testing.assert_array_equal(alone.items, together[i].items)
        np.testing.assert_array_equal(alone.logprobs, together[i].logprobs)


def test_threads_get_serial_answers(engine: Engine) -> None:
    batches = [requests(engine, 1 + i % 7, seed=i) for i in range(24)]
    serial = [engine.generate(batch, exclude_history=True) for batch in batches]
    with ThreadPoolExecutor(6) as pool:
        parallel = list(pool.map(lambda batch: engine.generate(batch, exclude_history=True), batches))
    for a, b in zip(serial, parallel, strict=True):
        equal(a, b)


def test_compute_threads_change_little(engine: Engine, checkpoint: Path) -> None:
    batch = requests(engine, 8)
    semantic_ids = [engine.catalogue.semantic_ids] * 8
    with Engine.from_checkpoint(checkpoint, threads=2) as other:
        assert other.threads == 2
        for a, b in zip(engine.score(batch, semantic_ids), other.score(batch, semantic_ids), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_interpreter_runs_on_while_an_engine_computes(engine: Engine) -> None:
    ticks, stop = 0, threading.Event()

    def count() -> None:
        nonlocal ticks
        while not stop.is_set():
            ticks += 1
            time.sleep(0.0005)

    counter = threading.Thread(target=count)
    counter.start()
    started = time.perf_counter()
    while time.perf_counter() - started < 0.5:
        engine.generate([Request(history=engine.catalogue.item_ids[:6], constrained=False)] * 16, beam_width=200)
    stop.set()
    counter.join()
    assert ticks > 50


def test_close(checkpoint: Path) -> None:
    engine = Engine.from_checkpoint(checkpoint, threads=1)
    assert "fp32" in repr(engine)
    engine.close()
    engine.close()
    for call in (
        lambda: engine.generate([Request()]),
        lambda: engine.score([Request()], [[[0, 0, 0]]]),
        engine.memory_plan,
    ):
        with pytest.raises(EngineClosedError, match="it is closed"):
            call()
    with Engine.from_checkpoint(checkpoint, threads=1) as other:
        pass
    with pytest.raises(EngineClosedError):
        other.generate([])


def test_close_waits_for_calls(checkpoint: Path) -> None:
    engine = Engine.from_checkpoint(checkpoint, threads=1)
    batch = requests(engine, 16)
    outcomes: list[str] = []

    def work() -> None:
        try:
            while True:
                outcomes.append("ok" if len(engine.generate(batch, beam_width=100)) == 16 else "wrong")
        except EngineClosedError:
            outcomes.append("closed")

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    while outcomes.count("ok") < 8:
        time.sleep(0.01)
    engine.close()
    for worker in workers:
        worker.join(20)
    assert outcomes.count("closed") == 4
    assert set(outcomes) == {"ok", "closed"}


# --- warm-up ---


def test_warm_up_changes_no_answer_and_records_what_calls_use(checkpoint: Path, engine: Engine) -> None:
    asked = requests(engine, 4, seed=3)
    with Engine.from_checkpoint(checkpoint, threads=1, warmup=[1, 4]) as warm:
        held = warm._core.memory_plan()
        assert held["arena"] > 0
        equal(warm.generate(asked), engine.generate(asked))
        warm.warm_up([2], beam_width=7, context=3)
        assert warm._core.memory_plan()["arena"] == held["arena"], "the largest plan came first"


def test_warm_up_refuses_what_no_call_could_have(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="got warmup 9, want 1 to max_batch 8"):
        Engine.from_checkpoint(checkpoint, threads=1, max_batch=8, warmup=[9])
    with Engine.from_checkpoint(checkpoint, threads=1, max_batch=8) as engine:
        with pytest.raises(ValueError, match="got warmup 0"):
            engine.warm_up([0])
        with pytest.raises(ValueError, match="beam_width"):
            engine.warm_up([1], beam_width=4096)
        with pytest.raises(ValueError, match="max_context"):
            engine.warm_up([1], context=1000)
