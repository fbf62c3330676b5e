"""The compiled extension, imported when it is first needed."""

from __future__ import annotations

import importlib

__all__ = ["build_info", "require_native"]


def require_native() -> None:
    """Makes sure that `onerec_engine._C` can be imported.

    Raises:
        ImportError: if it was not built or cannot be loaded, with the reason.
    """
    try:
        importlib.import_module("onerec_engine._C")
    except ImportError as error:
        raise ImportError(
            f"[install] cannot load onerec_engine._C: {error}. Run `pip install .` in the source tree.",
            name="onerec_engine._C",
        ) from error


def build_info() -> dict[str, str]:
    """How this build was made and what it can use here.

    Returns:
        version, compiler, gemm (the matrix library), cpu (instruction sets in use), cuda (``off: <reason>`` where there
        is none), and more.

    Raises:
        ImportError: if the extension cannot be loaded.
    """
    require_native()
    from onerec_engine import _C

    return dict(_C.build_info())
