"""config.json and generation_config.json: round trips, defaults, and everything that is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import EVERYTHING, MOE, pathway, tiny_config

from onerec_engine.config import CategoricalField, OneRecV2Config, load_config
from onerec_engine.errors import ConfigError
from onerec_engine.generation_config import GenerationDefaults, load_generation_defaults

FULL = tiny_config(**EVERYTHING).to_dict()


def test_defaults_follow_other_fields() -> None:
    config = tiny_config(num_attention_heads=4, head_dim=64)
    assert config.num_key_value_heads == config.num_context_kv_heads == 4
    assert config.attention_scale == 0.125
    assert config.levels == 3
    assert config.d_attention == 256
    assert config.d_context == 256


def test_derived_sizes() -> None:
    config = tiny_config(**EVERYTHING)
    assert config.d_context == 2 * 2 * 1 * 16
    assert config.max_context == 1 + 6 + 9
    assert [config.is_moe_layer(layer) for layer in range(2)] == [False, True]
    assert [config.pathway_input_dim(p) for p in config.pathways] == [7, 18, 15]
    assert [config.context_kv_layer(layer) for layer in range(2)] == [0, 1]


@pytest.mark.parametrize("changes", [{}, MOE, EVERYTHING])
def test_survives_json(changes: dict[str, Any], tmp_path: Path) -> None:
    config = tiny_config(**changes)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert load_config(tmp_path) == config == load_config(tmp_path / "config.json")
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "onerec_v1"}, "model_type 'onerec_v1'"),
        ({"hidden_sise": 3}, "unknown fields .'hidden_sise'"),
        ({"hidden_size": None}, "missing fields .'hidden_size'"),
        ({"codebook_sizes": 256}, "codebook_sizes = 256, want a list"),
        ({"codebook_sizes": []}, "0 levels"),
        ({"codebook_sizes": [8] * 9}, "9 levels"),
        ({"codebook_sizes": [8, 0]}, r"codebook_sizes\[1\] is 0"),
        ({"codebook_sizes": [8, 65_537]}, r"codebook_sizes\[1\] is 65537"),
        ({"codebook_sizes": [8, True]}, r"codebook_sizes\[1\] is True"),
        ({"hidden_size": 40}, "hidden_size is 40, want a multiple of 16"),
        ({"hidden_size": "32"}, "hidden_size is '32'"),
        ({"hidden_size": 10**40}, "hidden_size is 1000"),
        ({"head_dim": 10**400}, "head_dim is"),
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, "no multiple of num_key_value_heads"),
        ({"num_context_kv_layers": 3}, "num_context_kv_layers exceeds"),
        ({"context_kv_split": 3}, "context_kv_split is 3"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps is 0.0"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps is"),
        ({"attention_scale": -1.0}, "attention_scale is -1.0"),
        ({"qk_norm": 1}, "qk_norm is 1, want true or false"),
        ({"decoder_position_embedding": "rope"}, "decoder_position_embedding is 'rope'"),
        ({"decoder_position_embedding": ["none"]}, "decoder_position_embedding is"),
        ({"num_key_value_heads": ""}, "num_key_value_heads is ''"),
        (MOE | {"num_experts_per_tok": 5}, "num_experts_per_tok is 5"),
        (MOE | {"scoring_func": "tanh"}, "scoring_func is 'tanh'"),
        (MOE | {"moe_intermediate_size": 40}, "moe_intermediate_size is 40"),
        (MOE | {"n_routed_experts": 4096, "num_hidden_layers": 1024}, "tensors, want at most"),
        ({"pathways": []}, "0 entries"),
        ({"pathways": {}}, "want a list"),
        ({"pathways": ["items"]}, r"pathways\[0\] = 'items'"),
        ({"pathways": [pathway(), pathway()]}, "not unique"),
        ({"pathways": [pathway("a/b")]}, "letters, digits"),
        ({"pathways": [pathway(["x"])]}, "letters, digits"),
        ({"pathways": [pathway(source="offsets")]}, "source is 'offsets'"),
        ({"pathways": [pathway(kind="video")]}, "kind is 'video'"),
        ({"pathways": [pathway(max_tokens=0)]}, "max_tokens is 0"),
        ({"pathways": [pathway(colour="red")]}, "colour"),
        ({"pathways": [pathway(hidden_sizes=3)]}, "hidden_sizes"),
        ({"pathways": [pathway(hidden_sizes=[-1])]}, r"hidden_sizes\[0\]"),
        ({"pathways": [{"name": "user", "kind": "static"}]}, "at least one field"),
        ({"pathways": [pathway(fields=[{"kind": "image"}])]}, "whose kind is one of"),
        ({"pathways": [pathway(fields=[{"kind": ["dense"]}])]}, "whose kind is one of"),
        ({"pathways": [pathway(fields=[{"kind": "dense", "name": "x"}])]}, "dim"),
        ({"pathways": [pathway(fields=[{"kind": "dense", "name": "x", "dim": 0}])]}, "dim is 0"),
        ({"quantization_config": "fp8"}, "quantization_config"),
        ({"torch_dtype": 16}, "torch_dtype is 16"),
    ],
)
def test_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_config(**changes)


def test_lists_every_problem() -> None:
    with pytest.raises(ConfigError) as caught:
        tiny_config(hidden_size=-1, embed_dim=0, qk_norm="yes", pathways=[pathway(position_embedding="x")])
    for name in ("hidden_size", "embed_dim", "qk_norm", "position_embedding"):
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"a": NaN}', "holds NaN"),
        (b'{"a": -Infinity}', "holds -Infinity"),
        (b'{"hidden_size": 1, "hidden_size": 2}', "'hidden_size' twice"),
        (b'{"a": {"b": 1, "b": 2}}', "'b' twice"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b'{"hidden_size": ' + b"9" * 5000 + b"}", "not acceptable"),
        (b"[]", "want a JSON object"),
        (b" " * ((16 << 20) + 1), "more than"),
    ],
)
def test_refuses_files(text: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path)


def test_refuses_absent_and_special_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found no"):
        load_config(tmp_path)
    import os

    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ConfigError, match="no regular file"):
        load_config(tmp_path / "config.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, inner in steps for place in _places(inner, (*path, key)))]


@settings(max_examples=400, deadline=None)
@given(place=st.sampled_from(_places(FULL)[1:]), value=JSON)
def test_any_value_anywhere_is_read_or_refused(place: tuple[Any, ...], value: Any) -> None:
    raw = copy.deepcopy(FULL)
    inner: Any = raw
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    try:
        config = OneRecV2Config.from_dict(raw)
    except ConfigError:
        return
    assert OneRecV2Config.from_dict(config.to_dict()) == config


def test_field_widths() -> None:
    user = tiny_config(**EVERYTHING).pathways[0]
    assert [f.width for f in user.fields] == [4, 3]
    assert user.categorical_fields == (CategoricalField(name="age", num_embeddings=10, embedding_dim=4),)


# --- generation_config.json ---


def test_generation_defaults(tmp_path: Path) -> None:
    file = tmp_path / "generation_config.json"
    assert load_generation_defaults(None, 3) == GenerationDefaults()
    file.write_text('{"beam_width": 32, "num_results": 5, "transformers_version": "5"}')
    assert load_generation_defaults(file, 3) == GenerationDefaults(beam_width=(32, 32, 32), num_results=5)
    file.write_text('{"beam_width": [8, 16, 32]}')
    assert load_generation_defaults(file, 3) == GenerationDefaults(beam_width=(8, 16, 32))


@pytest.mark.parametrize(
    "text",
    ["[]", '{"beam_width": 0}', '{"beam_width": [1, 2]}', '{"beam_width": "8"}', '{"num_results": -1}', '{"a": NaN}'],
)
def test_refuses_generation_defaults(text: str, tmp_path: Path) -> None:
    file = tmp_path / "generation_config.json"
    file.write_text(text)
    with pytest.raises(ConfigError):
        load_generation_defaults(file, 3)
