"""The command: exit codes, one-line errors, JSON, every subcommand on a tiny checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_support import CONFIG, Command, make_checkpoint, make_data

from onerec_engine import cli
from onerec_engine.engine import Engine
from onerec_engine.evaluation import Interactions, metrics, rank_users
from onerec_engine.reference import random_state_dict

COMMANDS = ("demo", "recommend", "evaluate", "quantize", "inspect", "bench", "doctor")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("cli") / "tiny")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(capsys, monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "interactions.npz")


# --- usage ---


def test_help_and_version(run: Command) -> None:
    assert run("--version").code == 0
    assert all(command in run("--help").out for command in COMMANDS)
    for command in COMMANDS:
        answer = run(command, "--help")
        assert answer.code == 0
        assert "usage: onerec-engine" in answer.out


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("unknown",),
        ("evaluate",),
        ("evaluate", "--data", "x.npz", "--users", "0"),
        ("evaluate", "--data", "x.npz", "--quantization", "fp4"),
        ("evaluate", "--data", "x.npz", "--beam-width", "8,none"),
        ("recommend", "--history", "1,two"),
        ("bench", "--precisions", "fp32,fp64"),
        ("bench", "--batch-sizes", "0"),
    ],
)
def test_wrong_arguments(run: Command, arguments: tuple[str, ...]) -> None:
    run(*arguments).failed(2)


def test_without_tqdm_says_what_to_install(run: Command, monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    run("recommend", "--checkpoint", checkpoint, "--history", "1").failed(2, "pip install 'onerec_engine[cli]'")
    assert run("doctor").code == 0


def test_checkpoint_that_is_missing_or_damaged(run: Command, checkpoint: Path, tmp_path: Path) -> None:
    run("recommend", "--checkpoint", tmp_path / "none", "--history", "1").failed(1)
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 64)
    run("inspect", tmp_path).failed(1, "[checkpoint]")
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    run("inspect", tmp_path).failed(1, "[config]")


def test_no_traceback_but_on_demand(checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "onerec_engine.cli", "evaluate", "--data", str(tmp_path / "none.npz")]
    plain = subprocess.run(command, capture_output=True, text=True, check=False)
    assert plain.returncode == 1
    assert plain.stderr.count("\n") == 1
    debug = subprocess.run([*command, "--debug"], capture_output=True, text=True, check=False)
    assert debug.returncode == 1
    assert "Traceback" in debug.stderr


# --- evaluate ---


def test_evaluate_writes_the_figures(run: Command, checkpoint: Path, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    answer = run("evaluate", "--checkpoint", checkpoint, "--data", data, "--beam-width", 16, "--json", file)
    assert answer.code == 0, answer.err
    assert "recall@10" in answer.out
    figures = json.loads(file.read_text(encoding="utf-8"))
    assert {"recall@5", "recall@10", "ndcg@5", "ndcg@10", "users", "seconds"} <= figures.keys()
    split = Interactions.load(data).split("test")
    with Engine.from_checkpoint(checkpoint) as engine:
        want = metrics(rank_users(engine, split, np.arange(30), beam_width=16).ranks)
    assert {name: figures[name] for name in want} == pytest.approx(want)
    assert figures["users"] == 30
    assert figures["seconds"] > 0


@pytest.mark.parametrize(
    "extra", [["--quantization", "fp8"], ["--quantization", "fp8_channel"], ["--precision", "bf16"]]
)
def test_evaluate_a_sample_in_every_precision(run: Command, checkpoint: Path, data: Path, extra: list[str]) -> None:
    options = ["--users", 9, "--split", "valid", "--beam-width", "8,16,16", "--json", "-", *extra]
    answer = run("evaluate", "--checkpoint", checkpoint, "--data", data, *options)
    assert answer.code == 0, answer.err
    figures = json.loads(answer.out)
    assert figures["users"] == 9
    assert figures["split"] == "valid"


def test_evaluate_with_data_that_cannot_be_read(run: Command, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    run("evaluate", "--checkpoint", checkpoint, "--data", tmp_path / "bad.npz").failed(1, "[data]")


# --- quantize, inspect, bench, doctor, demo ---


@pytest.mark.parametrize("scheme", ["fp8", "fp8_channel"])
def test_quantized_checkpoints_answer_the_same(run: Command, checkpoint: Path, tmp_path: Path, scheme: str) -> None:
    answer = run("quantize", tmp_path / "out", "--checkpoint", checkpoint, "--scheme", scheme)
    assert answer.code == 0, answer.err
    history = ("--history", "1,2,3")
    loaded = run("recommend", "--checkpoint", tmp_path / "out", *history)
    at_load = run("recommend", "--checkpoint", checkpoint, "--quantization", scheme, *history)
    assert loaded.lines == at_load.lines
    run("quantize", tmp_path / "out", "--checkpoint", checkpoint).failed(2, "[quantize]")


def test_inspect_lists_and_measures(run: Command, checkpoint: Path, data: Path, tmp_path: Path) -> None:
    file, picture = tmp_path / "inspect.json", tmp_path / "figure.png"
    answer = run("inspect", checkpoint, "--data", data, "--users", 6, "--json", file, "--plot", picture)
    assert answer.code == 0, answer.err
    report = json.loads(file.read_text(encoding="utf-8"))
    assert report["config"]["hidden_size"] == 32
    assert sum(t["bytes"] for t in report["tensors"]) == report["bytes"]
    assert {"model.bos_embedding", "lm_heads.2.weight"} <= {t["name"] for t in report["tensors"]}
    assert report["memory_plan"]["weights"] > 0
    weights = {s["name"]: s for s in report["statistics"]["weights"]["tensors"]}
    # Stored as BF16, so measured on what BF16 keeps.
    values = random_state_dict(CONFIG)["lm_heads.0.weight"].bfloat16().float().numpy()
    head = weights["lm_heads.0.weight"]
    assert head["variance"] == pytest.approx(values.var(), rel=1e-4)
    assert head["absmax"] == pytest.approx(np.abs(values).max())
    assert head["absp99"] == np.sort(np.abs(values).ravel())[int(np.ceil(0.99 * values.size)) - 1]
    inputs = report["statistics"]["inputs"]["tensors"]
    assert any("self_attn" in s["name"] for s in inputs)
    assert all(0 < s["absp99"] <= s["absmax"] for s in inputs)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_inspect_on_stdout_is_json_alone(run: Command, checkpoint: Path) -> None:
    answer = run("inspect", "--checkpoint", checkpoint, "--no-statistics", "--json", "-")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["statistics"] == {}


def test_bench_times_every_combination(run: Command, checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    sizes = ["--batch-sizes", "1,3", "--beam-widths", "4,8", "--precisions", "fp32,fp8", "--rounds", 2]
    answer = run("bench", "--checkpoint", checkpoint, *sizes, "--json", file)
    assert answer.code == 0, answer.err
    report = json.loads(file.read_text(encoding="utf-8"))
    assert len(report["runs"]) == 8
    assert all(r["ms_per_request_min"] <= r["ms_per_request_median"] for r in report["runs"])
    assert report["machine"]["cpu"] in answer.out


def test_doctor_reports(run: Command, tmp_path: Path) -> None:
    answer = run("doctor", "--json", "-")
    assert answer.code == 0
    report = json.loads(answer.out)
    assert report["extension"] == {"loaded": True, "error": None}
    assert {"version", "gemm", "cuda"} <= report["build"].keys()
    assert {"build", "machine", "gpus", "packages"} <= report.keys()
    assert "instruction sets" in run("doctor").out


def test_doctor_without_the_extension(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onerec_engine._C", None)
    answer = run("doctor")
    assert answer.code == 1
    assert "CANNOT BE LOADED" in answer.out


def test_demo_of_a_checkpoint_with_examples(run: Command, checkpoint: Path) -> None:
    answer = run("demo", "--checkpoint", checkpoint, "--users", 2, "--beam-width", 16)
    assert answer.code == 0, answer.err
    assert answer.out.count(" agree.") == 2
    assert "FP8 on a CPU shows accuracy, not speed" in answer.out
    assert max(map(len, answer.out.splitlines())) <= 100


def test_demo_needs_examples(run: Command, checkpoint: Path, tmp_path: Path) -> None:
    for file in checkpoint.iterdir():
        if file.name != "example_requests.jsonl":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    run("demo", "--checkpoint", tmp_path).failed(1, "[demo]")


def test_demo_of_the_bundled_checkpoint(run: Command) -> None:
    answer = run("demo")
    assert answer.code == 0, answer.err
    assert answer.out.count(" agree.") == 5
    assert max(map(len, answer.out.splitlines())) <= 100
