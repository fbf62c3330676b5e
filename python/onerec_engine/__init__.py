"""Inference engine for OneRec-V2 generative recommenders.

>>> from onerec_engine import Engine, Request
>>> with Engine.from_checkpoint(path) as engine:
...     results = engine.generate([Request(history=[12, 7, 431])], num_results=10)

Everything here is imported when it is first used: `import onerec_engine` needs no GPU, no driver and no torch, and
starts no thread.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onerec_engine._native import build_info
    from onerec_engine.assets import beauty_checkpoint
    from onerec_engine.catalogue import Catalogue
    from onerec_engine.checkpoint import Checkpoint
    from onerec_engine.config import OneRecV2Config, load_config
    from onerec_engine.engine import Engine
    from onerec_engine.errors import (
        CheckpointError,
        ConfigError,
        EngineClosedError,
        EngineError,
        OutOfMemoryPlanError,
    )
    from onerec_engine.quant import quantize_checkpoint
    from onerec_engine.request import Request
    from onerec_engine.result import BatchResult, Recommendation, Result

    __version__: str

__all__ = [
    "BatchResult",
    "Catalogue",
    "Checkpoint",
    "CheckpointError",
    "ConfigError",
    "Engine",
    "EngineClosedError",
    "EngineError",
    "OneRecV2Config",
    "OutOfMemoryPlanError",
    "Recommendation",
    "Request",
    "Result",
    "__version__",
    "beauty_checkpoint",
    "build_info",
    "load_config",
    "quantize_checkpoint",
]

_MODULES = {
    "BatchResult": "result",
    "Catalogue": "catalogue",
    "Checkpoint": "checkpoint",
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "Engine": "engine",
    "EngineClosedError": "errors",
    "EngineError": "errors",
    "OneRecV2Config": "config",
    "OutOfMemoryPlanError": "errors",
    "Recommendation": "result",
    "Request": "request",
    "Result": "result",
    "beauty_checkpoint": "assets",
    "build_info": "_native",
    "load_config": "config",
    "quantize_checkpoint": "quant",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            value: Any = version("onerec-engine")
        except PackageNotFoundError:  # a source tree that was not installed
            value = "0+unknown"
    elif name in _MODULES:
        value = getattr(importlib.import_module(f"onerec_engine.{_MODULES[name]}"), name)
    else:
        raise AttributeError(f"module 'onerec_engine' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
