"""Named ranges for profilers that watch the process: NVTX by the package `nvtx`, else by torch, else nothing."""

from __future__ import annotations

import contextlib
import importlib
from contextlib import AbstractContextManager
from typing import Any

import torch

__all__ = ["annotate"]

_nvtx: Any = None
with contextlib.suppress(ImportError):
    _nvtx = importlib.import_module("nvtx")


def annotate(name: str) -> AbstractContextManager[Any]:
    """A range around the block."""
    if _nvtx is not None:
        annotation: AbstractContextManager[Any] = _nvtx.annotate(name)
        return annotation
    if torch.cuda.is_available():
        return torch.cuda.nvtx.range(name)
    return contextlib.nullcontext()
