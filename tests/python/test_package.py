"""What importing the package does, and what comes with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import onerec_engine
from onerec_engine import Engine, Request
from onerec_engine._native import require_native
from onerec_engine.assets import beauty_checkpoint
from onerec_engine.errors import CheckpointError


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_light() -> None:
    """No torch, no NumPy, no extension, no thread; and then no torch and no extension until an engine is made."""
    assert _run(
        "import sys, threading, onerec_engine as o; "
        "assert not {'torch', 'numpy', 'onerec_engine._C'} & set(sys.modules); "
        "o.Engine, o.Request, o.Catalogue, o.quantize_checkpoint; "
        "assert not {'torch', 'onerec_engine._C'} & set(sys.modules); "
        "assert threading.active_count() == 1; "
        "assert all(hasattr(o, name) for name in o.__all__) and set(o.__all__) <= set(dir(o)); "
        "print(o.__version__)"
    )


def test_works_without_the_extension_until_it_is_needed(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['onerec_engine._C'] = None\n"
        "import onerec_engine as o\n"
        "catalogue = o.Catalogue([3, 1], [[0, 1], [1, 0]], codebook_sizes=[2, 2])\n"
        "catalogue.save('.')\n"
        "try: o.build_info()\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[install] cannot load onerec_engine._C: ")


def test_build_info() -> None:
    require_native()
    info = onerec_engine.build_info()
    assert {"version", "compiler", "gemm", "cuda"} <= info.keys()
    assert info["cuda"] == "on" or info["cuda"].startswith("off: ")


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Engin'"):
        onerec_engine.Engin  # noqa: B018


def test_beauty_checkpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with Engine.from_checkpoint(beauty_checkpoint(), threads=1, max_batch=1) as engine:
        assert len(engine.catalogue) == 12_101
        assert engine.config.levels == 3
        result = engine.generate([Request(history=np.arange(5))], exclude_history=True)[0]
        assert result.complete
        assert not set(range(5)) & set(result.items.tolist())
    monkeypatch.setattr("onerec_engine.assets.__file__", str(tmp_path / "assets.py"))
    with pytest.raises(CheckpointError, match="found no checkpoint"):
        beauty_checkpoint()
