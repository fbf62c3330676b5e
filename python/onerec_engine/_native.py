"""The compiled extension, imported when it is first needed."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

__all__ = ["build_info", "require_native", "use_matrix_library"]


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


def use_matrix_library() -> None:
    """Tells the extension where OpenBLAS is, if this build multiplies with it and the package that brings it is here.

    The package is located but not imported: importing it loads the library, which starts threads.
    """
    from onerec_engine import _C

    if "OpenBLAS" not in _C.build_info()["gemm"]:
        return
    spec = importlib.util.find_spec("scipy_openblas32")
    for folder in spec.submodule_search_locations or () if spec else ():
        for file in sorted(Path(folder, "lib").glob("libscipy_openblas.*")):
            _C.set_matrix_library(str(file))
