"""The engine on a GPU against the engine on the CPU, and against itself. Runs with `pytest -m gpu`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch")

from engine_case import PRECISIONS, SIZED_MOE, open_engine, sized_model  # noqa: E402
from model_case import Case  # noqa: E402
from model_grid import MOE, NAMED, grid, small_config  # noqa: E402
from test_parity_runs import CONFIGS, LENGTHS, batches, mixed_case, same_bits, same_results, search  # noqa: E402

from onerec_engine import Engine, assets  # noqa: E402
from onerec_engine.evaluation import Interactions, rank_users, recall_at, sample_users  # noqa: E402
from onerec_engine.request import Request  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]

GRID = grid(drawn=24)
Floats = npt.NDArray[np.float64]


def scores_on(case: Case, directory: Path, device: str, precision: str) -> Floats:
    with open_engine(case, directory / device, precision, device=device) as engine:
        assert engine.device == device
        return np.stack(engine.score(case.requests, case.tuples)).astype(np.float64)


@pytest.mark.parametrize("name", GRID)
def test_fp32_gives_the_scores_of_the_cpu(tmp_path: Path, name: str):
    case = Case(GRID[name], seed=1, lengths=[3, 0, 12, 1, 5], tuples=6)
    got, want = (scores_on(case, tmp_path, device, "fp32") for device in ("cuda", "cpu"))
    assert np.abs(got - want).max() <= 2e-4


def within_the_format(cuda: Floats, cpu: Floats, fp32: Floats) -> None:
    """The difference between devices is no larger than what the format costs, and has no direction.

    Args:
        cuda, cpu, fp32: scores [requests, tuples].
    """
    difference = cuda - cpu
    assert np.isfinite(difference).all()
    assert np.abs(difference).mean() <= np.abs(cpu - fp32).mean()
    # A request's tuples share its context, and what experts that is routed to: they err together, and count once.
    means = difference.mean(axis=1)
    assert abs(means.mean()) <= 3 * means.std(ddof=1) / np.sqrt(means.size)


@pytest.mark.parametrize("precision", ["bf16", "fp8", "fp8_channel"])
@pytest.mark.parametrize("experts", [{}, SIZED_MOE], ids=["dense", "moe"])
def test_rounded_precisions_are_as_near_as_the_format_allows(tmp_path: Path, precision: str, experts: dict[str, Any]):
    case = Case(small_config(**sized_model(**experts)), seed=5, lengths=[20, 0, 7, 13, 3] * 4, tuples=15)
    cuda, cpu = (scores_on(case, tmp_path, device, precision) for device in ("cuda", "cpu"))
    within_the_format(cuda, cpu, scores_on(case, tmp_path / "exact", "cpu", "fp32"))


def random_histories(engine: Engine, count: int, seed: int) -> list[Request]:
    rng = np.random.default_rng(seed)
    return [Request(history=rng.choice(engine.catalogue.item_ids, rng.integers(1, 20))) for _ in range(count)]


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
@pytest.mark.parametrize("asset", ["beauty", "beauty_moe"])
def test_trained_models_are_as_near_as_the_format_allows(asset: str, precision: str):
    path = assets.beauty_checkpoint().with_name(asset)
    with ExitStack() as stack:
        engines = [
            stack.enter_context(Engine.from_checkpoint(path, device=device, **PRECISIONS[name]))
            for device, name in (("cuda", precision), ("cpu", precision), ("cpu", "fp32"))
        ]
        requests = random_histories(engines[0], 48, seed=2)
        rng = np.random.default_rng(3)
        tuples = engines[0].catalogue.semantic_ids[rng.integers(len(engines[0].catalogue), size=(48, 20))]
        within_the_format(*(np.stack(e.score(requests, tuples)).astype(np.float64) for e in engines))


@pytest.mark.parametrize("name", ["everything", "moe", "blocks", "one_level"])
def test_fp32_searches_like_the_cpu(tmp_path: Path, name: str):
    case = Case(NAMED[name], seed=7, lengths=LENGTHS, tuples=2)
    found = []
    for device in ("cuda", "cpu"):
        with open_engine(case, tmp_path / device, "fp32", device=device) as engine:
            found.append(
                [
                    search(engine, case.requests),
                    engine.generate(case.requests, beam_width=[4, 9, 16][: case.config.levels]),
                ]
            )
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one.counts, other.counts)
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=2e-4)


@pytest.fixture(scope="module", params=[(n, p) for n in CONFIGS for p in PRECISIONS], ids="-".join)
def opened(request: pytest.FixtureRequest, gpu: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    name, precision = request.param
    case = mixed_case(name)
    directory = tmp_path_factory.mktemp("model")
    with open_engine(case, directory, precision, device="cuda", max_batch=16) as engine:
        yield case, engine


def test_a_graph_equals_eager_execution(opened: tuple[Case, Engine]):
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


def test_threads_get_the_serial_answers(tmp_path: Path):
    case = Case(NAMED["moe_raw_scores"], seed=11, lengths=LENGTHS, tuples=4)
    with open_engine(case, tmp_path, "fp8", device="cuda", max_batch=3) as engine:
        parts = [case.requests[i:j] for i in range(7) for j in range(i + 1, 8)]
        serial = [search(engine, part) for part in parts]

        def work(seed: int) -> None:
            for i in np.random.default_rng(seed).permutation(len(parts)):
                same_results(search(engine, parts[i]), serial[i])

        with ThreadPoolExecutor(6) as pool:
            for done in [pool.submit(work, seed) for seed in range(6)]:
                done.result()


def test_warm_up_records_the_plans_that_calls_use(tmp_path: Path):
    case = Case(NAMED["moe"], seed=3, lengths=[6, 6], tuples=2)
    with open_engine(case, tmp_path, "fp8", device="cuda", warmup=[1, 2]) as engine:
        cold = open_engine(case, tmp_path / "cold", "fp8", device="cuda")
        same_results(engine.generate(case.requests), cold.generate(case.requests))
        cold.close()


def test_a_thousand_engines_leave_no_memory_behind(tmp_path: Path):
    case = Case(small_config(**MOE), seed=6, lengths=LENGTHS, tuples=2)
    case.save(tmp_path)

    def cycle() -> None:
        with Engine.from_checkpoint(tmp_path, device="cuda", quantization="fp8", max_beam_width=32) as engine:
            search(engine, case.requests[:2])

    for _ in range(5):
        cycle()
    before = torch.cuda.mem_get_info()[0]
    for _ in range(1000):
        cycle()
    # Drivers hand memory out in pieces of 2 MiB; one lost per engine would be 2 GiB.
    assert before - torch.cuda.mem_get_info()[0] <= 64 * 2**20


def test_a_device_failure_is_named_and_kills_the_engine(tmp_path: Path):
    """In a process of its own: after a fault in a kernel nothing on that GPU works any more in it."""
    Case(small_config(), seed=6, lengths=LENGTHS, tuples=2).save(tmp_path)
    program = f"""
import torch
from onerec_engine import Engine, Request
from onerec_engine.errors import DeviceError
engine = Engine.from_checkpoint({str(tmp_path)!r}, device="cuda", precision="bf16", max_beam_width=32)
engine.generate([Request(history=[])])
index = torch.full((1,), 1 << 40, device="cuda")
try:
    torch.zeros(4, device="cuda")[index]
    torch.cuda.synchronize()
except Exception:
    pass
for _ in range(2):
    try:
        engine.generate([Request(history=[])])
        print("answered")
    except DeviceError as error:
        print(error)
engine.close()
print("closed")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert len(lines) == 3
    assert "cudaError" in lines[0]
    assert "died of an earlier failure" in lines[1]
    assert lines[2] == "closed"


@pytest.mark.beauty
@pytest.mark.parametrize("asset", ["beauty", "beauty_moe"])
def test_recall_is_that_of_the_cpu_within_its_interval(beauty_path: Path, asset: str):
    split = Interactions.load(beauty_path).split("test")
    users = sample_users(len(split), 3000, 0)
    path = assets.beauty_checkpoint().with_name(asset)
    recalls = []
    for device in ("cuda", "cpu"):
        with Engine.from_checkpoint(path, device=device, quantization="fp8", max_batch=64) as engine:
            ranks = rank_users(engine, split, users, beam_width=64, num_results=10)
            recalls.append(recall_at(ranks.ranks, 10))
    difference = np.asarray(recalls[0], np.float64) - np.asarray(recalls[1], np.float64)
    assert abs(difference.mean()) <= 3 * difference.std() / np.sqrt(difference.size) + 1e-9
