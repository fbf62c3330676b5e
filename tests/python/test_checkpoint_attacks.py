"""Damaged and hostile safetensors files: each is refused with its named error, before its data are read."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import tiny_config, write_checkpoint

from onerec_engine._safetensors import SafetensorsError, SafetensorsFile
from onerec_engine.checkpoint import Checkpoint
from onerec_engine.errors import CheckpointError

LIMIT = 1 << 20


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("sound") / "plain")


@pytest.fixture
def plain(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "checkpoint"))


def _file(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def _parse(data: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


# --- truncation ---


def test_truncation_at_every_header_byte(plain: Path) -> None:
    file = plain / "model.safetensors"
    whole = file.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    assert length > 2000
    for size in range(8 + length):
        file.write_bytes(whole[:size])
        with pytest.raises(SafetensorsError, match=r"at least 8|bytes follow"):
            SafetensorsFile(file, max_header_bytes=LIMIT)
    for size in (0, 7, 8, 9, 8 + length // 2, 7 + length):
        file.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"model.safetensors (has|claims)"):
            Checkpoint(plain)


def test_truncation_at_data_offsets(plain: Path) -> None:
    file = plain / "model.safetensors"
    whole = file.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    sizes = np.unique(np.linspace(8 + length, len(whole) - 1, 120).astype(int))
    assert sizes.size >= 100
    for size in sizes:
        file.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"data_offsets .* within"):
            Checkpoint(plain)


@pytest.mark.parametrize("extra", [1, 7, 4096])
def test_trailing_bytes(plain: Path, extra: int) -> None:
    with open(plain / "model.safetensors", "ab") as file:
        file.write(bytes(extra))
    with pytest.raises(CheckpointError, match=f"has {extra} trailing bytes"):
        Checkpoint(plain)


# --- hostile headers ---


ENTRY = '"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'

HEADERS: dict[str, tuple[bytes, str]] = {
    "huge length": (struct.pack("<Q", 2**64 - 1) + b"{}", "claims a header of 18446744073709551615 bytes"),
    "long length": (struct.pack("<Q", 1 << 30) + b"{}", "want at most"),
    "beyond the file": (struct.pack("<Q", 1000) + b"{}", "bytes follow"),
    "empty": (_file(b""), "no JSON object"),
    "not JSON": (_file(b"{]"), "not JSON"),
    "leading space": (_file(b" {}"), "no JSON object"),
    "list": (_file(b"[]"), "no JSON object"),
    "not UTF-8": (_file(b'{"\xff":1}'), "not UTF-8"),
    "deep lists": (_file(b'{"a":' + b"[" * 200_000), "nested too deeply"),
    "deep objects": (_file(b'{"a":' * 150_000), "nested too deeply"),
    "NaN": (_file(b'{"a":NaN}'), "NaN"),
    "long integer": (_file(b'{"a":' + b"1" * 10_000 + b"}"), "not acceptable JSON"),
    "two documents": (_file(b"{}{}"), "not JSON"),
    "duplicate": (_file(f"{{{ENTRY},{ENTRY}}}".encode(), bytes(8)), "key 'a' twice"),
    "duplicate inside": (
        _file(b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
        "key 'dtype' twice",
    ),
    "no object": (_file(b'{"a":[1]}'), "tensor 'a': got"),
    "null": (_file(b'{"a":null}'), "tensor 'a': got"),
    "metadata": (_file(b'{"__metadata__":{"a":1}}'), "__metadata__"),
    "metadata list": (_file(b'{"__metadata__":[]}'), "__metadata__"),
}

ENTRIES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown dtype": ({"dtype": "F128"}, "dtype 'F128'"),
    "dtype list": ({"dtype": ["F32"]}, "dtype"),
    "shape string": ({"shape": "2"}, "shape '2'"),
    "negative shape": ({"shape": [-2]}, "shape"),
    "negative twice": ({"shape": [-1, -2]}, "shape"),
    "true shape": ({"shape": [True, 2]}, "shape"),
    "real shape": ({"shape": [2.0]}, "shape"),
    "deep shape": ({"shape": [2] + [1] * 8}, "shape"),
    "overflowing shape": ({"shape": [2**62, 2**62]}, "8 bytes, want 85"),
    "zero times huge": ({"shape": [0, 2**62]}, "8 bytes, want 0"),
    "beyond 64 bits": ({"shape": [2**64]}, "shape"),
    "negative offset": ({"data_offsets": [-8, 0]}, "data_offsets"),
    "reversed": ({"data_offsets": [8, 0]}, "data_offsets"),
    "one offset": ({"data_offsets": [0]}, "data_offsets"),
    "three offsets": ({"data_offsets": [0, 4, 8]}, "data_offsets"),
    "beyond": ({"data_offsets": [0, 1 << 40]}, "data_offsets"),
    "real offset": ({"data_offsets": [0, 8.0]}, "data_offsets"),
    "no offsets": ({"data_offsets": None}, "data_offsets"),
    "too short": ({"data_offsets": [0, 4]}, "4 bytes, want 8"),
    "further key": ({"more": 1}, "want dtype, shape and data_offsets"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_hostile_headers(name: str, plain: Path) -> None:
    data, message = HEADERS[name]
    (plain / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(plain)


@pytest.mark.parametrize("name", ENTRIES)
def test_hostile_entries(name: str, plain: Path) -> None:
    change, message = ENTRIES[name]
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | change
    (plain / "model.safetensors").write_bytes(_file(json.dumps({"a": entry}).encode(), bytes(8)))
    with pytest.raises(CheckpointError, match=f"tensor 'a': .*{message}"):
        Checkpoint(plain)


@pytest.mark.parametrize(
    ("begins", "data", "message"),
    [((0, 0), 8, "'b' overlaps"), ((0, 4), 12, "'b' overlaps"), ((0, 12), 20, "'b' leaves a hole")],
)
def test_overlaps_and_holes(begins: tuple[int, int], data: int, message: str, plain: Path) -> None:
    header = {
        name: {"dtype": "F32", "shape": [2], "data_offsets": [begin, begin + 8]}
        for name, begin in zip("ab", begins, strict=True)
    }
    (plain / "model.safetensors").write_bytes(_file(json.dumps(header).encode(), bytes(data)))
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(plain)


def test_duplicate_tensor_with_sound_offsets(plain: Path) -> None:
    """A second entry of a name that JSON readers would silently prefer."""
    file = plain / "model.safetensors"
    header, data = _parse(file.read_bytes())
    name = "model.bos_embedding"
    text = json.dumps(header)
    text = text[:-1] + f', "{name}": {json.dumps(header[name])}}}'
    file.write_bytes(_file(text.encode(), data))
    with pytest.raises(CheckpointError, match=f"key '{name}' twice"):
        Checkpoint(plain)


def test_every_byte_of_the_header_matters_or_is_noticed(plain: Path) -> None:
    """Flipped bits never end in anything but the named error, or in the same tensors."""
    file = plain / "model.safetensors"
    whole = bytearray(file.read_bytes())
    (length,) = struct.unpack("<Q", whole[:8])
    rng = np.random.default_rng(0)
    for at in rng.integers(0, 8 + length, 150):
        damaged = whole.copy()
        damaged[at] ^= 1 << int(rng.integers(0, 8))
        file.write_bytes(damaged)
        try:
            Checkpoint(plain).close()
        except CheckpointError as error:
            assert str(error).startswith("[checkpoint] ")  # noqa: PT017 - an equal header may load


def test_long_names_do_not_flood_the_message(plain: Path) -> None:
    header = {
        "x" * 100_000 + str(i): {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i in range(8)
    }
    (plain / "model.safetensors").write_bytes(_file(json.dumps(header).encode(), bytes(32)))
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(plain)
    assert len(str(caught.value)) < 20_000


# --- absurd sizes ---


def test_a_header_longer_than_the_model_needs(plain: Path) -> None:
    file = plain / "model.safetensors"
    header, data = _parse(file.read_bytes())
    header["__metadata__"] = {"x": "y" * (2 << 20)}
    file.write_bytes(_file(json.dumps(header).encode(), data))
    with pytest.raises(CheckpointError, match=r"claims a header of .* want at most"):
        Checkpoint(plain)


def test_a_sparse_file_of_terabytes(plain: Path) -> None:
    """What a file claims is not what is allocated."""
    config = tiny_config(codebook_sizes=[8, 6, 65_536], embed_dim=1 << 20)
    (plain / "config.json").write_text(json.dumps(config.to_dict()))
    shape = [65_536, 1 << 20]
    size = 4 * shape[0] * shape[1]
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}
    header = json.dumps({"context.semantic_id_embeddings.2.weight": entry}).encode()
    with open(plain / "model.safetensors", "wb") as file:
        file.write(_file(header))
        try:
            file.truncate(8 + len(header) + size)
        except OSError:
            pytest.skip("the file system refuses sparse files of this size")
    with pytest.raises(CheckpointError, match="missing: "):
        Checkpoint(plain)
