"""``onerec-engine recommend``: histories in, JSON lines out, in order, and bad lines by number."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_support import ITEMS, Command, json_lines, make_checkpoint

from onerec_engine.engine import Engine
from onerec_engine.request import Request


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("cli") / "tiny")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(capsys, monkeypatch)


def test_recommend_from_arguments(run: Command, checkpoint: Path) -> None:
    answer = run("recommend", "--checkpoint", checkpoint, "--history", "1,2,3", "--history", "", "--num-results", 4)
    assert answer.code == 0, answer.err
    with Engine.from_checkpoint(checkpoint) as engine:
        want = engine.generate([Request(history=[1, 2, 3]), Request()], beam_width=64, num_results=4)
    for line, result in zip(answer.lines, want, strict=True):
        assert line["items"] == result.items.tolist()
        assert line["semantic_ids"] == result.semantic_ids.tolist()
        assert line["logprobs"] == pytest.approx(result.logprobs.tolist())


def test_recommend_keeps_the_order_in_any_batch_size(run: Command, checkpoint: Path, tmp_path: Path) -> None:
    requests = [{"id": f"user {i}", "history": [i, i + 1], "num_results": 1 + i % 4} for i in range(7)]
    (tmp_path / "in.jsonl").write_text(json_lines(*requests) + "\n", encoding="utf-8")
    piped = run("recommend", "--checkpoint", checkpoint, "--batch-size", 3, stdin=json_lines(*requests))
    file = run("recommend", tmp_path / "in.jsonl", "--checkpoint", checkpoint, "--batch-size", 2)
    assert piped.code == file.code == 0
    assert [line["id"] for line in piped.lines] == [line["id"] for line in file.lines] == [r["id"] for r in requests]
    assert [len(line["items"]) for line in piped.lines] == [r["num_results"] for r in requests]
    assert [line["items"] for line in piped.lines] == [line["items"] for line in file.lines]


def test_recommend_leaves_out_what_it_is_told_to(run: Command, checkpoint: Path) -> None:
    def items(*flags: object, **request: Any) -> list[int]:
        answer = run("recommend", "--checkpoint", checkpoint, *flags, stdin=json_lines(request))
        assert answer.code == 0, answer.err
        found: list[int] = answer.lines[0]["items"]
        return found

    first = items(history=[3, 4])
    assert first[0] not in items(history=[3, 4], exclude=[first[0]])
    history = [3, 4, first[0], first[1]]
    assert not set(history) & set(items("--exclude-history", history=history))
    assert not set(history) & set(items(history=history, exclude_history=True))


def test_recommend_unconstrained_names_no_item_where_there_is_none(run: Command, checkpoint: Path) -> None:
    line = run("recommend", "--checkpoint", checkpoint, "--unconstrained", "--history", "1").lines[0]
    assert None in line["items"]
    assert all(item is None or 0 <= item < ITEMS for item in line["items"])
    assert len(line["semantic_ids"]) == 10


@pytest.mark.parametrize(
    "bad",
    [
        "{",
        "[1]",
        '{"features": {}}',
        '{"history": [1], "beams": 3}',
        '{"history": ["a"]}',
        '{"history": [1], "beam_width": 0}',
        '{"history": [1], "target": "x"}',
        '{"history": [1], "features": {"nothing": [1]}}',
    ],
)
@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_bad_line_is_named_after_those_before_it_are_answered(
    run: Command, checkpoint: Path, bad: str, batch_size: int
) -> None:
    good = {"history": [1, 2]}
    text = json_lines(good, good) + "\n" + bad + "\n" + json_lines(good)
    answer = run("recommend", "--checkpoint", checkpoint, "--batch-size", batch_size, stdin=text)
    answer.failed(2, "line 4")
    assert len(answer.lines) == 2


def test_recommend_wants_one_source(run: Command, checkpoint: Path) -> None:
    run("recommend", "x.jsonl", "--history", "1", "--checkpoint", checkpoint).failed(2)
    run("recommend", "x.jsonl", "--checkpoint", checkpoint).failed(1, "x.jsonl")


def test_a_reader_that_goes_away_is_no_traceback(checkpoint: Path) -> None:
    requests = json_lines(*({"history": [i]} for i in range(60)))
    command = [sys.executable, "-m", "onerec_engine.cli", "recommend", "--checkpoint", str(checkpoint)]
    process = subprocess.Popen(
        [*command, "--batch-size", "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stdin.write(requests)
    process.stdin.close()
    assert "Traceback" not in process.stderr.read()
    assert process.wait() == 1
