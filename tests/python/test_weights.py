"""The list of expected tensors against docs/checkpoint_format.md, and the exact conversions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import EVERYTHING, MOE, tiny_config, to_bytes

from onerec_engine.float_formats import e4m3_values, to_float32
from onerec_engine.weights import expected_tensors

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/checkpoint_format.md"


def _documented_patterns() -> list[re.Pattern[str]]:
    """The names of the document's table, and the biases of its text, as patterns."""
    rows = re.findall(
        r"^\| `((?:model|lm_heads|context)\.(?!safetensors)[^`]*)`", DOCUMENT.read_text(), flags=re.MULTILINE
    )
    rows += [
        *(f"model.layers.{{l}}.cross_attn.{p}_proj.bias" for p in "qo"),
        *(f"model.layers.{{l}}.self_attn.{p}_proj.bias" for p in "qkvo"),
        "model.layers.{l}.mlp.{gate,up,down}_proj.bias",
        "model.layers.{l}.mlp.shared_experts.{gate,up,down}_proj.bias",
        "lm_heads.{t}.bias",
    ]
    patterns = []
    for row in rows:
        parts = re.split(r"(\{[^}]*\})", row)
        out = ""
        for part in parts:
            if not part.startswith("{"):
                out += re.escape(part)
            elif "," in part:
                out += "(?:" + "|".join(part[1:-1].split(",")) + ")"
            else:
                out += r"\w+" if part in ("{name}", "{field}") else r"\d+"
        patterns.append(re.compile(out))
    return patterns


@pytest.mark.parametrize("changes", [{}, MOE, EVERYTHING])
def test_names_are_documented_and_distinct(changes: dict[str, Any]) -> None:
    patterns = _documented_patterns()
    names = [spec.name for spec in expected_tensors(tiny_config(**changes))]
    assert len(set(names)) == len(names)
    for name in names:
        assert any(pattern.fullmatch(name) for pattern in patterns), name


def test_every_documented_name_occurs() -> None:
    names = [spec.name for spec in expected_tensors(tiny_config(**EVERYTHING))]
    for pattern in _documented_patterns():
        assert any(pattern.fullmatch(name) for name in names), pattern.pattern


def test_smallest_model_by_hand() -> None:
    config = tiny_config(num_hidden_layers=1)
    got = {spec.name: (spec.shape, spec.kind) for spec in expected_tensors(config)}
    layer = "model.layers.0."
    want = {
        **{f"context.semantic_id_embeddings.{t}.weight": ((v, 5), "table") for t, v in enumerate((8, 6, 7))},
        "context.pathways.recent.proj.0.weight": ((32, 15), "context"),
        "context.pathways.recent.position_embedding.weight": ((6, 32), "table"),
        "context.k_norms.0.weight": ((32,), "vector"),
        "model.bos_embedding": ((32,), "table"),
        "model.token_embeddings.0.weight": ((8, 32), "table"),
        "model.token_embeddings.1.weight": ((6, 32), "table"),
        **{f"{layer}{norm}.weight": ((32,), "vector") for norm in ("cross_attn_norm", "self_attn_norm", "mlp_norm")},
        **{f"{layer}cross_attn.{p}_proj.weight": ((32, 32), "linear") for p in "qo"},
        **{f"{layer}self_attn.{p}_proj.weight": ((32, 32), "linear") for p in "qkvo"},
        f"{layer}mlp.gate_proj.weight": ((48, 32), "linear"),
        f"{layer}mlp.up_proj.weight": ((48, 32), "linear"),
        f"{layer}mlp.down_proj.weight": ((32, 48), "linear"),
        **{f"model.output_norms.{t}.weight": ((32,), "vector") for t in range(3)},
        **{f"lm_heads.{t}.weight": ((v, 32), "head") for t, v in enumerate((8, 6, 7))},
    }
    assert got == want


def test_shapes_of_everything() -> None:
    got = {spec.name: (spec.shape, spec.kind) for spec in expected_tensors(tiny_config(**EVERYTHING))}
    assert got["model.layers.0.self_attn.k_proj.weight"] == ((16, 32), "linear")
    assert got["model.layers.0.self_attn.k_proj.bias"] == ((16,), "vector")
    assert got["model.layers.1.mlp.gate.weight"] == ((4, 32), "router")
    assert got["model.layers.1.mlp.experts.3.down_proj.weight"] == ((32, 32), "expert")
    assert got["model.layers.1.mlp.shared_experts.down_proj.weight"] == ((32, 32), "linear")
    assert got["context.pathways.user.fields.age.weight"] == ((10, 4), "table")
    assert got["context.pathways.recent.proj.0.weight"] == ((24, 18), "context")
    assert got["context.pathways.recent.proj.1.weight"] == ((64, 24), "context")
    assert got["context.pathways.recent.proj.1.bias"] == ((64,), "vector")
    assert got["context.v_norms.1.weight"] == ((16,), "vector")
    assert "context.pathways.user.fields.stats.weight" not in got


def test_no_semantic_id_tables_without_items() -> None:
    static = {"name": "user", "kind": "static", "fields": [{"kind": "dense", "name": "x", "dim": 2}]}
    names = [spec.name for spec in expected_tensors(tiny_config(pathways=[static]))]
    assert not any("semantic_id_embeddings" in name for name in names)


def test_conversions_match_torch() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    for dtype, kind in (("BF16", torch.bfloat16), ("F16", torch.float16)):
        want = torch.from_numpy(bits.view(np.int16)).view(kind).float().numpy()
        np.testing.assert_array_equal(to_float32(bits.view(np.uint8), dtype, (1 << 16,)), want)
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(e4m3_values(), codes)


def test_helper_rounds_like_torch() -> None:
    values = np.random.default_rng(0).standard_normal(1000, np.float32)
    want = torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint8)
    np.testing.assert_array_equal(to_bytes(values, "BF16"), want)


def test_codes_times_scales() -> None:
    codes = np.full((200, 300), 0x38, np.uint8)  # 1.0
    rows = np.arange(1, 201, dtype=np.float32)
    values = to_float32(codes.reshape(-1), "F8_E4M3", (200, 300), rows)
    np.testing.assert_array_equal(values, np.broadcast_to(rows[:, None], (200, 300)))
    blocks = np.arange(1, 7, dtype=np.float32).reshape(2, 3)
    values = to_float32(codes.reshape(-1), "F8_E4M3", (200, 300), blocks)
    assert values[127, 127] == 1
    assert values[127, 128] == 2
    assert values[199, 299] == 6
    with pytest.raises(ValueError, match="I8"):
        to_float32(codes.reshape(-1), "I8", (200, 300))
