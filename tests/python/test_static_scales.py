"""What docs/numerics.md says of static scales in the bundled models."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from onerec_engine import _C, beauty_checkpoint
from onerec_engine.checkpoint import Checkpoint

torch = pytest.importorskip("torch")

PAGE = Path(__file__).resolve().parent.parent.parent / "docs/numerics.md"


def stored(checkpoint: Checkpoint, name: str) -> np.ndarray:
    """A linear's weight as FP8 holds it, in float64."""
    codes, scales = _C.quantize_channel(checkpoint.read_float32(name))
    values = torch.from_numpy(codes).view(torch.float8_e4m3fn).to(torch.float64).numpy()
    return values * scales.reshape(-1, 1)


def bounds(checkpoint: Checkpoint, prefix: str) -> np.ndarray:
    """b_j of the page, of a dense or shared network."""
    gamma = checkpoint.read_float32(prefix.split("mlp.")[0] + "mlp_norm.weight").astype(np.float64)
    gate = stored(checkpoint, prefix + "gate_proj.weight") * gamma
    up = stored(checkpoint, prefix + "up_proj.weight") * gamma
    lengths = np.linalg.norm(gate, axis=1) * np.linalg.norm(up, axis=1)
    return len(gamma) / 2 * (lengths + np.abs((gate * up).sum(axis=1)))


def test_the_page_says_how_even_the_bundled_models_are():
    text = PAGE.read_text(encoding="utf-8")
    said = re.search(
        r"is ([\d.]+) to ([\d.]+) times the\nmedian one, and the median of b_j / d is ([\d.]+) to ([\d.]+) s", text
    )
    assert said is not None
    spreads, sizes = [], []
    for path in (beauty_checkpoint(), beauty_checkpoint().parent / "beauty_moe"):
        with Checkpoint(path) as checkpoint:
            names = [spec.name for spec in checkpoint.specs]
            for name in names:
                if not name.endswith("gate_proj.weight") or ".experts." in name:
                    continue
                b = bounds(checkpoint, name.removesuffix("gate_proj.weight"))
                scale = 2.0 ** math.ceil(math.log2(1.25 * b.max() / 448))
                spreads.append(b.max() / np.median(b))
                sizes.append(np.median(b) / checkpoint.config.hidden_size / scale)
                assert sizes[-1] >= 1 / 32  # it is taken
    assert len(spreads) == 8
    found = [min(spreads), max(spreads), min(sizes), max(sizes)]
    assert [f"{value:.1f}" for value in found] == list(said.groups())
