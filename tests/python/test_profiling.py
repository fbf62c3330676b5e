"""The measuring tools, as far as they go without a GPU: their arithmetic, and a run of each on the CPU."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import accuracy
import bench_engine_gpu
import gpu_facts
import gpu_page
import numpy as np
import pytest
import torch
from contestants.torch_search import TorchOneRec
from kernel_times import IDLE, Activity, read_trace, shares, short_name
from op_bench.baselines import quantize_blocks, quantize_rows, quantize_weight_blocks
from op_bench.harness import row_error, sample_rows
from pictures import draw_kernels, draw_roofline
from random_model import RandomEngine, RandomWeights, core_batch, random_items
from roofline import DATASHEETS, Op, floors, plan_ops, read_ceilings
from sanitize import FOUND, device_tests, judge
from sizes import linears, sized_config
from verdicts import agreement

from onerec_engine._C import quantize_block, quantize_channel
from onerec_engine.reference.trie import Trie

PROFILING = Path(__file__).resolve().parents[2] / "profiling"
ROUND = {"copy": 1e12, "bf16": 1e15, "fp8": 2e15, "attention": 1e15}


# --- sizes and floors ---


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("0.1B", 0.0885),
        ("0.2B", 0.1734),
        ("0.5B", 0.4996),
        ("1B", 1.0404),
        ("2B", 2.1021),
        ("4B", 4.0562),
        ("8B", 7.8612),
        ("MoE 4B-A0.5B", 4.068),
    ],
)
def test_sizes_have_the_reports_parameters(name: str, billions: float) -> None:
    decoder = [linear for linear in linears(sized_config(name)) if linear.name not in ("head", "router")]
    total = sum(linear.count * linear.parameters for linear in decoder)
    assert total / 1e9 == pytest.approx(billions, abs=6e-4)


def test_an_op_is_bound_by_operations_or_by_what_must_be_fetched() -> None:
    compute = Op("x", 0, 2, flops=4e12, fetched=1e9, activations=1e6, unit="fp8")
    assert compute.floor(ROUND) == pytest.approx(2 * 2e-3)
    weights = Op("x", 0, 1, flops=1e9, fetched=3e9, activations=1e6)
    assert weights.floor(ROUND) == pytest.approx(3e-3)
    assert weights.streamed(ROUND) == pytest.approx(3.001e-3)
    cached = Op("x", 0, 1, flops=0.0, fetched=0.0, activations=4e7)
    assert (cached.floor(ROUND), cached.streamed(ROUND)) == (0.0, pytest.approx(4e-5))
    assert Op("x", 0, 1, 0.0, 0.0, 6e7).floor(ROUND) == pytest.approx(6e-5)


def test_floors_of_a_plan() -> None:
    """1B, one request, 512 beams, 3000 tokens in FP8: the figures that a pencil gives."""
    config = sized_config("1B", 3000)
    found = floors(plan_ops(config, 1, [512] * 3, 3000, "fp8"), DATASHEETS["H100"])
    d, rows = 1792, 1 + 512 + 512
    assert found["gate_up"]["flops"] == 18 * 2 * rows * 14336 * d
    assert found["gate_up"]["fetched"] == 18 * 3 * 14336 * d
    # The first step reads weights, the others compute: 14336 * 1792 bytes against 2 * 512 * 14336 * 1792 operations.
    once = 14336 * d / 3.35e12 + 2 * (2 * 512 * 14336 * d / 1979e12)
    assert found["gate_up"]["floor"] == pytest.approx(1e3 * 18 * once)
    assert found["cross-attention"]["flops"] == 18 * 4 * rows * 3000 * d
    assert found["head"]["fetched"] == 3 * 2 * 8192 * d
    assert found["attention o"]["count"] == 18 * 2 * 3
    assert found["rms_norm"]["count"] == 3 * (3 * 18 + 1)
    assert found["quantize"]["count"] == 18 * 3
    assert "quantize" not in floors(plan_ops(config, 1, [512] * 3, 3000, "bf16"), ROUND)


def test_a_mixture_fetches_the_experts_that_rows_reach() -> None:
    config = sized_config("MoE 4B-A0.5B")
    ops = [op for op in plan_ops(config, 1, [512] * 3, 512, "fp8") if op.name == "experts gate_up"]
    one = 2816 * 1408
    assert [op.flops for op in ops] == [2 * rows * 3 * one for rows in (1, 512, 512)]
    assert ops[0].fetched == pytest.approx(3 * one)
    assert ops[1].fetched == pytest.approx(53 * one)


@pytest.mark.parametrize(
    ("device", "card"), [("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA H200", "H200"), ("X", "H100")]
)
def test_ceilings_are_read_from_a_results_file(device: str, card: str, tmp_path: Path) -> None:
    file = tmp_path / "ops.json"
    file.write_text(json.dumps({"ceilings": {"bf16": 3e12}, "facts": {"device": device}}))
    assert read_ceilings(str(file)) == (DATASHEETS[card] | {"bf16": 3e12}, f"ops.json, {device}")


@pytest.mark.parametrize("card", DATASHEETS)
def test_ceilings_are_those_of_a_datasheet(card: str) -> None:
    assert read_ceilings(card) == (DATASHEETS[card], f"datasheet, {card} SXM")


def test_ceilings_of_nowhere_are_refused() -> None:
    with pytest.raises(SystemExit, match=r"got ceilings 'X1', want H100 or H200, or a file of bench_ops\.py"):
        read_ceilings("X1")


# --- correctness checks ---


def test_errors_never_pass_nan() -> None:
    want = torch.ones(4, 3)
    got = want.clone()
    got[2] *= 1.01
    rows = torch.tensor([0, 2])
    assert row_error(got, rows, want[rows]) == pytest.approx(0.01 / 2**0.5, rel=1e-3)
    got[3, 0] = torch.nan
    assert row_error(got, rows, want[rows]) == float("inf")
    chosen = sample_rows(1000, "cpu", 10)
    assert chosen[0] == 0
    assert chosen[-1] == 999


def test_quantisers_give_the_engines_codes() -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 256)
    for ours, theirs in ((quantize_rows(x), quantize_channel(x.numpy())), (_block(x), quantize_block(x.numpy()))):
        assert np.array_equal(ours[0].view(torch.uint8).numpy(), theirs[0])
        assert np.array_equal(ours[1].numpy(), theirs[1])
    codes, scales = quantize_blocks(x[:, :200])
    assert codes.shape == (256, 200)
    assert torch.equal(scales[1], (x[:, 128:200].abs().amax(1) / 448).clamp(min=1e-12))


def _block(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    codes, scales = quantize_weight_blocks(x.unsqueeze(0))
    return codes[0], scales[0]


def test_agreement() -> None:
    ours = [{"codes": [[0, 1], [2, 3]], "logprobs": [-1.0, -2.0]}]
    theirs = [{"codes": [[0, 1], [4, 5]], "logprobs": [-1.5, -2.0]}]
    found = agreement(ours, theirs)
    assert (found.overlap, found.largest, found.mean, found.misplaced) == (0.5, 0.5, 0.5, 0)
    theirs[0]["logprobs"][0] = float("nan")
    assert agreement(ours, theirs).mean == float("inf")


@pytest.mark.parametrize("model", ["tiny", "tiny MoE"])
@pytest.mark.parametrize("constrained", [False, True])
def test_the_torch_contestant_is_the_same_model(model: str, constrained: bool) -> None:
    """In FP32 it gives the engine's answers, so what it does in BF16 is the same search."""
    config = sized_config(model, 20, 64)
    weights = RandomWeights(config, "cpu")
    loaded = RandomEngine.load(weights, "fp32", "cpu", requests=3, beams=8, items=3000, threads=2)
    with loaded.engine as engine:
        codes = engine.catalogue.semantic_ids[random_items(engine.catalogue, 3, 20)]
        batch = core_batch(config, codes, [8] * 3, constrained=constrained)
        ours = bench_engine_gpu.core_answers(loaded.core.run(batch))
        trie = Trie.build(engine.catalogue.item_ids.copy(), engine.catalogue.semantic_ids) if constrained else None
    theirs = TorchOneRec(config, lambda name: weights(name).float(), trie)
    searched = theirs.search(torch.from_numpy(codes.astype(np.int64)), [8] * 3)
    found = agreement(ours, bench_engine_gpu.torch_answers(*searched))
    assert (found.overlap, found.misplaced) == (1.0, 0)
    assert found.largest < 1e-4


# --- profiles ---


def test_shares_add_up_to_the_whole() -> None:
    """Kernels may begin while the one before still runs; only what they add at the end is theirs."""
    found = shares([Activity("a", 0.0, 10.0), Activity("b", 6.0, 9.0), Activity("c", 20.0, 5.0)])
    assert found == [("a", 10.0), ("b", 5.0), (IDLE, 5.0), ("c", 5.0)]
    assert shares([]) == []


def test_traces_are_read_by_their_ends(tmp_path: Path) -> None:
    def event(category: str, name: str, start: float, duration: float) -> dict[str, Any]:
        return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": duration}

    events = [event("kernel", "late", 5, 9), event("cpu_op", "x", 0, 99), event("gpu_memcpy", "copy", 1, 2)]
    file = tmp_path / "trace.json"
    file.write_text(json.dumps({"traceEvents": events}))
    assert [activity.name for activity in read_trace(file)] == ["copy", "late"]


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("void onerec::cuda::kernels::rms_norm<__nv_bfloat16, (int)8>(Arguments)", "rms_norm<__nv_bfloat16, 8>"),
        ("onerec::cuda::kernels::route_rows(onerec::cuda::kernels::RouteArgs)", "route_rows"),
        (
            "void cutlass::device_kernel<cutlass::gemm::kernel::GemmUniversal<cute::tuple<int, int, int, int>, "
            "cutlass::gemm::collective::CollectiveMma<X<(int)4, cute::tuple<cute::C<(int)2>, cute::C<(int)1>, "
            "cute::C<(int)1>>>, cute::tuple<cute::C<(int)128>, cute::C<(int)256>, cute::C<(int)128>>, "
            "cutlass::float_e4m3_t>>>(Params)",
            "CUTLASS e4m3 128x256x128",
        ),
        ("void at::(anonymous namespace)::fill<float>(int)", "fill<float>"),
        ("Memcpy HtoD (Pinned -> Device)", "Memcpy HtoD"),
    ],
)
def test_kernel_names(name: str, short: str) -> None:
    assert short_name(name) == short


def test_sanitizer_output() -> None:
    assert judge(0, "[  PASSED  ] 3 tests.\n========= ERROR SUMMARY: 0 errors\n") == "clean"
    assert judge(FOUND, "========= ERROR SUMMARY: 2 errors\n") == "2 errors"
    assert judge(0, "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n").startswith("1 hazard")
    assert (
        judge(1, "[  FAILED  ] 2 tests, listed below:\n========= ERROR SUMMARY: 0 errors\n") == "test failed: 2 tests"
    )
    assert judge(0, "[  PASSED  ] 3 tests.\n") == "no summary: did the tool run?"
    assert {"linear", "generation_engine", "beam_select"} <= set(device_tests())


# --- whole runs ---


def test_bench_ops_on_the_cpu(tmp_path: Path) -> None:
    file = tmp_path / "ops.json"
    options = "--device cpu --quick --models tiny --kinds linear,selection --rows 4 --width 8 --codebook 64"
    command = [sys.executable, str(PROFILING / "bench_ops.py"), *options.split(), "--ceiling-size", "64"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--json", str(file)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(file.read_text())
    ours = [row for row in report["rows"] if row["contestant"].startswith("ours")]
    assert len(ours) > 10
    assert all(row["ok"] and row["seconds"] > 0 for row in ours)
    assert {"facts", "ceilings", "clocks_at_end", "left_out"} <= report.keys()
    picture = tmp_path / "ops.png"
    draw_roofline(report, picture)
    assert picture.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this torch has a GPU")
@pytest.mark.parametrize("tool", ["bench_engine.py --device cuda", "ladder.py --model 1B"])
def test_tools_that_need_a_gpu_say_so_at_once(tool: str) -> None:
    name, *arguments = tool.split()
    ran = subprocess.run(
        [sys.executable, PROFILING / name, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 2
    assert ran.stderr.endswith(f"{name}: error: found no GPU\n")


def test_bench_engine_gpu_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = argparse.Namespace(
        gpu_rows=[bench_engine_gpu.Row("tiny", 2, 12)],
        models=None,
        precisions=None,
        commit="none",
        width=8,
        rounds=2,
        constrained=True,
        items=3000,
        codebook=64,
        json=str(tmp_path / "bench.json"),
    )
    assert bench_engine_gpu.run(args) == 0, capsys.readouterr().out
    report = json.loads((tmp_path / "bench.json").read_text())
    assert [run["constrained"] for run in report["runs"]] == [False, True]
    ours = {f"{what} {precision}" for what in ("core", "generate") for precision in ("bf16", "fp8")}
    assert report["runs"][0]["laps"].keys() == ours | {"PyTorch, eager"}


def test_picture_of_kernels(tmp_path: Path) -> None:
    kernels = [{"kernel": f"k{i}", "count": 3, "us": 100.0 / (i + 1)} for i in range(30)]
    report = {"facts": {"commit": "x"}, "generation": "g", "total_us": 400.0, "kernels": kernels}
    draw_kernels(report, tmp_path / "kernels.png")
    assert (tmp_path / "kernels.png").stat().st_size > 1000


@pytest.mark.parametrize("script", ["nsys_generate.sh", "ncu_kernel.sh"])
def test_scripts_say_what_is_missing(script: str) -> None:
    found = subprocess.run(
        ["/bin/sh", str(PROFILING / script), "report", "x"],
        capture_output=True,
        text=True,
        env={"PATH": "/nowhere"},
        check=False,
    )
    assert found.returncode == 1
    assert "is not on the PATH" in found.stderr


def test_a_sanitizer_out_of_time_takes_its_test_with_it(tmp_path: Path) -> None:
    """The sanitizer starts the test as its child: neither may stay behind."""
    pid_file = tmp_path / "pid"
    sanitizer = tmp_path / "sanitizer"
    sanitizer.write_text(f"#!/bin/sh\nsleep 600 & echo $! > {pid_file}\nwait\n", encoding="utf-8")
    sanitizer.chmod(0o755)
    (tmp_path / "test_swiglu").touch()
    options = ["--bin", str(tmp_path), "--tools", "memcheck", "--tests", "swiglu", "--timeout", "2"]
    done = subprocess.run(
        [sys.executable, str(PROFILING / "sanitize.py"), "--sanitizer", str(sanitizer), *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "timed out" in done.stdout
    status = Path("/proc") / pid_file.read_text(encoding="utf-8").strip() / "stat"
    assert not status.exists() or status.read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"


def test_the_page_says_where_the_copy_is_no_ceiling() -> None:
    row = {"contestant": "ours", "op": "swiglu to BF16", "bytes": 6e8, "seconds": 2e-4}
    ops = {"ceilings": {"copy": 2.5e12}, "facts": {"l2_bytes": 5e7}, "rows": [row]}
    assert "swiglu to BF16 of ours moves 3.00 TB/s" in gpu_page.beyond_copy(ops)
    others = [row | change for change in ({"contestant": "torch"}, {"op": "self-attention"}, {"bytes": 4e7})]
    for rows in ([], [row | {"seconds": 3e-4}], [row | {"seconds": None}], others):
        assert gpu_page.beyond_copy(ops | {"rows": rows}) == ""


def test_the_gpu_page_says_what_the_figures_say() -> None:
    results = PROFILING / "results"

    def load(paths: list[Path]) -> list[Any]:
        return [json.loads(path.read_text(encoding="utf-8")) for path in paths]

    engine, ops = load([results / "bench_gpu.json", results / "bench_ops.json"])
    ladders = load(sorted(results.glob("ladder_*.json")))
    kernels = sorted(results.glob("kernels_*.json"))
    page = gpu_page.page(engine, ladders, ops, list(zip([path.stem for path in kernels], load(kernels), strict=True)))
    assert page == gpu_page.PAGE.read_text(encoding="utf-8")


def test_the_accuracy_page_says_what_the_figures_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = tmp_path / "accuracy.md"
    monkeypatch.setattr(sys, "argv", ["accuracy.py", "--page-only", "--page", str(written)])
    assert accuracy.main() == 0
    assert written.read_text(encoding="utf-8") == (accuracy.ROOT / "docs/accuracy.md").read_text(encoding="utf-8")


def test_recorded_commands_name_no_folder_outside_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["profiling/bench_engine.py", "--program", "build/bin/program", "--json", "/somewhere/else/bench.json"]
    monkeypatch.setattr(sys, "argv", argv)
    recorded = gpu_facts.gpu_facts("1234567")["command"]
    assert recorded == "python profiling/bench_engine.py --program build/bin/program --json bench.json"
    for path in (PROFILING / "results").glob("*.json"):
        for command in re.findall(r'"command": "([^"]*)"', path.read_text(encoding="utf-8")):
            assert not [word for word in command.split() if word.startswith(("/", "."))], path.name
