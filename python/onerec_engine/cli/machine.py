"""What this machine is, read without running anything of the engine."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

__all__ = ["describe", "gpus", "machine"]

# Instruction sets that decide which kernels a CPU runs, as /proc/cpuinfo names them.
_ISA = {
    "x86_64": "avx2 fma f16c avx512f avx512bw avx512vl avx512_vnni avx512_bf16 avx512_fp16 amx_tile amx_bf16 amx_int8",
    "aarch64": "asimd asimdhp asimddp bf16 i8mm sve sve2 svebf16",
}


def machine() -> dict[str, Any]:
    """The CPU, its instruction sets, the cores this process may use, memory and software."""
    fields = _cpuinfo()
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "vendor": fields.get("vendor_id"),
        "architecture": platform.machine(),
        "isa": [name for name in _ISA.get(platform.machine(), "").split() if name in flags],
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _memory(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def describe(facts: dict[str, Any]) -> str:
    """One line about a machine."""
    memory = facts["memory_bytes"]
    parts = [f"{facts['cpu']} ({facts['architecture']})", f"{facts['usable_cores']} of {facts['cores']} cores"]
    if memory:
        parts.append(f"{memory / 2**30:.0f} GiB")
    return ", ".join(parts)


def gpus() -> list[str]:
    """The NVIDIA GPUs the driver names, one line each; empty without a driver."""
    query = ["nvidia-smi", "--query-gpu=name,compute_cap,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]


def _cpuinfo() -> dict[str, str]:
    """The first processor's fields of /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in lines}


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
