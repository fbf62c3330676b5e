"""Every snippet of README.md runs: Python in order in one namespace, and the command's lines; make targets exist."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"

pytestmark = pytest.mark.skipif(not README.is_file(), reason="there is no README.md beside the tests")


class Snippet(NamedTuple):
    language: str
    line: int
    text: str


def snippets(*languages: str) -> list[Snippet]:
    """The fenced blocks of some languages, in order."""
    if not README.is_file():
        return []
    text = README.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w+)[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    blocks = [Snippet(m[1], text.count("\n", 0, m.start()) + 1, m[2]) for m in found]
    return [block for block in blocks if block.language in languages]


def commands() -> Iterator[tuple[int, str]]:
    """Line number and text of every shell command, continuation lines joined, comments and prompts dropped."""
    for block in snippets("sh", "bash", "shell", "console"):
        joined = block.text.replace("\\\n", " ")
        for number, line in enumerate(joined.splitlines(), block.line + 1):
            command = re.sub(r"\s+#.*", "", line.removeprefix("$ ")).strip()
            if command and not command.startswith("#"):
                yield number, command


def folder(path: Path) -> Path:
    """What a reader has beside the README: a checkpoint, interactions, and a file of requests."""
    from cli_support import json_lines, make_checkpoint, make_data

    make_checkpoint(path / "checkpoint")
    make_data(path / "data.npz")
    make_data(path / "beauty.npz")
    (path / "requests.jsonl").write_text(json_lines({"id": 1, "history": [1, 2, 3]}), encoding="utf-8")
    return path


def test_python_snippets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = snippets("python", "py")
    if not blocks:
        pytest.skip("README.md has no Python")
    monkeypatch.chdir(folder(tmp_path))
    namespace: dict[str, object] = {"__name__": "readme"}
    for block in blocks:
        # Blank lines in front keep the README's line numbers in tracebacks.
        exec(compile("\n" * block.line + block.text, str(README), "exec"), namespace)


ENGINE_COMMANDS = [pytest.param(c, id=f"line {n}") for n, c in commands() if "onerec-engine" in c.split()]


@pytest.mark.parametrize("command", ENGINE_COMMANDS or [pytest.param("", marks=pytest.mark.skip(reason="none"))])
def test_command_lines(command: str, tmp_path: Path) -> None:
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    script = f'onerec-engine() {{ {shlex.quote(sys.executable)} -m onerec_engine.cli "$@"; }}\n{command}\n'
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", script], cwd=folder(tmp_path), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    if command.startswith("onerec-engine recommend"):
        assert all(json.loads(line)["items"] for line in done.stdout.splitlines())


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))
    wanted = [word for _, text in commands() for word in _make_targets(text)]
    assert set(wanted) <= targets


def test_files_that_are_run_exist() -> None:
    scripts = [word for _, text in commands() for word in text.split() if word.endswith(".py")]
    assert [script for script in scripts if not (ROOT / script).is_file()] == []


def _make_targets(command: str) -> list[str]:
    words = shlex.split(command)
    if "make" not in words[:2]:
        return []
    return [word for word in words[words.index("make") + 1 :] if "=" not in word and not word.startswith("-")]
