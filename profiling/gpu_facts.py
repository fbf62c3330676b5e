"""What a measurement was taken on and with: device, clocks, software, commit."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from onerec_engine._native import build_info
from onerec_engine.cli.machine import machine

__all__ = ["clocks", "commit_of", "gpu_facts"]

ROOT = Path(__file__).resolve().parent.parent
cudnn: Any = torch.backends.cudnn

_CLOCKS = ("clocks.sm", "clocks.mem", "clocks.max.sm", "power.draw", "temperature.gpu")


def gpu_facts(commit: str | None, seed: int | None = None) -> dict[str, Any]:
    """Everything that a results file says about its circumstances."""
    facts: dict[str, Any] = {
        "command": _command(sys.argv),
        "commit": commit or commit_of(ROOT),
        "seed": seed,
        "build": build_info(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "machine": {name: value for name, value in machine().items() if name in ("cpu", "usable_cores", "python")},
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts["device"] = properties.name
        facts["multiprocessors"] = properties.multi_processor_count
        facts["l2_bytes"] = properties.L2_cache_size
        facts["cudnn"] = cudnn.version()
        facts["driver"] = _query("driver_version")
    facts["clocks_at_start"] = clocks()
    return facts


def clocks() -> dict[str, str]:
    """Clocks, power and temperature as the driver reports them now; empty without nvidia-smi."""
    values = _query(",".join(_CLOCKS)).split(", ")
    return dict(zip(_CLOCKS, values, strict=True)) if len(values) == len(_CLOCKS) else {}


def commit_of(folder: Path) -> str:
    """The commit checked out in a folder, with a mark if files differ from it; "unknown" where there is no git."""
    try:
        head = _run("git", "-C", str(folder), "rev-parse", "--short=12", "HEAD")
        changed = _run("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head + ("+changes" if changed else "")


def _query(fields: str) -> str:
    try:
        answer = _run("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.splitlines()[0] if answer else ""


def _command(arguments: Sequence[str]) -> str:
    """The command line, without the folders of files outside the project."""
    return "python " + shlex.join(Path(word).name if Path(word).is_absolute() else word for word in arguments)


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
