"""``onerec-engine doctor``: what is installed and what it can use on this machine."""

from __future__ import annotations

import argparse
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from onerec_engine._native import build_info
from onerec_engine.cli import options
from onerec_engine.cli.machine import gpus, machine
from onerec_engine.cli.output import byte_text, say, write_json

__all__ = ["add_arguments", "run"]

_PACKAGES = ("onerec-engine", "numpy", "safetensors", "tqdm", "torch", "nvtx", "matplotlib", "scipy-openblas32")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Collects and prints the facts; fails only where the extension cannot be loaded."""
    report: dict[str, Any] = {
        "extension": {"loaded": False, "error": None},
        "build": {},
        "machine": machine(),
        "gpus": gpus(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }
    try:
        report["build"] = build_info()
        report["extension"]["loaded"] = True
    except ImportError as error:
        report["extension"]["error"] = str(error)
    say(_text(report), args.json)
    write_json(args.json, report)
    return 0 if report["extension"]["loaded"] else 1


def _text(report: dict[str, Any]) -> str:
    facts, extension = report["machine"], report["extension"]
    memory = facts["memory_bytes"]
    lines = [
        ("extension", "loaded" if extension["loaded"] else f"CANNOT BE LOADED: {extension['error']}"),
        *((f"  {name.replace('_', ' ')}", _value(value)) for name, value in report["build"].items()),
        ("CPU", f"{facts['cpu']} ({facts['architecture']})"),
        ("  instruction sets", " ".join(facts["isa"]) or "unknown"),
        ("  cores", f"{facts['usable_cores']} usable of {facts['cores']}"),
        ("  memory", byte_text(memory) if memory else "unknown"),
        ("GPU", "none seen by the NVIDIA driver, or no driver" if not report["gpus"] else report["gpus"][0]),
        *(("", other) for other in report["gpus"][1:]),
        ("system", f"{facts['system']}, Python {facts['python']}"),
        ("packages", ""),
        *((f"  {name}", found or "not installed") for name, found in report["packages"].items()),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in lines)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value)) or "none"
    return str(value) if value not in (None, "") else "none"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
