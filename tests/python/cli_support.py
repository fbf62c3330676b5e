"""A tiny checkpoint, a tiny data file, and the command called in this process."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onerec_engine import cli
from onerec_engine.config import OneRecV2Config
from onerec_engine.pathway import Pathway
from onerec_engine.reference import random_state_dict, save_checkpoint

ITEMS = 200
CONFIG = OneRecV2Config(
    codebook_sizes=(16, 16, 16),
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    head_dim=16,
    intermediate_size=64,
    embed_dim=16,
    n_routed_experts=4,
    n_shared_experts=1,
    num_experts_per_tok=2,
    moe_intermediate_size=32,
    first_k_dense_replace=1,
    pathways=(Pathway(name="history", kind="items", max_tokens=8, position_embedding="recency"),),
)


def make_checkpoint(path: Path) -> Path:
    """A random mixture of experts of a few thousand parameters with 200 items and example requests."""
    rng = np.random.default_rng(0)
    codes = np.stack(np.unravel_index(rng.choice(16**3, ITEMS, replace=False), (16, 16, 16)), axis=1)
    save_checkpoint(path, CONFIG, random_state_dict(CONFIG), np.arange(ITEMS), codes)
    examples = [{"history": rng.integers(0, ITEMS, 5).tolist(), "target": 7} for _ in range(3)]
    (path / "example_requests.jsonl").write_text(json_lines(*examples), encoding="utf-8")
    return path


def make_data(path: Path) -> Path:
    """Interactions of 30 users, 4 to 9 items each."""
    rng = np.random.default_rng(1)
    histories = [rng.choice(ITEMS, rng.integers(4, 10), replace=False) for _ in range(30)]
    offsets = np.concatenate([[0], np.cumsum([len(h) for h in histories])])
    np.savez(path, items=np.concatenate(histories), offsets=offsets)
    return path


def json_lines(*requests: object) -> str:
    return "".join(json.dumps(request) + "\n" for request in requests)


class Outcome:
    """What a call of the command left behind."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    def failed(self, code: int, *parts: str) -> None:
        """Checks the exit code, and one line on stderr that holds `parts`."""
        assert self.code == code, self.err
        assert self.err.count("\n") == 1, self.err
        assert self.err.startswith("onerec-engine: [")
        for part in parts:
            assert part in self.err


class Command:
    """The command, called in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.capsys, self.monkeypatch = capsys, monkeypatch

    def __call__(self, *arguments: object, stdin: str = "") -> Outcome:
        self.monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        self.capsys.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        captured = self.capsys.readouterr()
        return Outcome(code, captured.out, captured.err)
