"""Files that lead out of a checkpoint's directory, and indices that do not fit their shards."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import write_checkpoint

from onerec_engine.catalogue import Catalogue
from onerec_engine.checkpoint import Checkpoint
from onerec_engine.errors import CheckpointError, ConfigError


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("sound") / "plain")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("sharded") / "plain", shards=3)


@pytest.fixture
def plain(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "checkpoint"))


@pytest.fixture
def shards(sharded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sharded, tmp_path / "checkpoint"))


def _file(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def _open(directory: Path) -> None:
    """What loading an engine reads."""
    with Checkpoint(directory) as checkpoint:
        Catalogue.load(checkpoint.path, codebook_sizes=checkpoint.config.codebook_sizes)


# --- paths ---


OUTSIDE = ["../model.safetensors", "/etc/passwd", "a/../../b", "sub/model.safetensors", "..", ".", "", "a\\b", "a\0b"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_shard_names_that_leave_the_directory(name: str, shards: Path) -> None:
    shutil.copy(shards / "model-00001-of-00003.safetensors", shards.parent / "model.safetensors")
    index = shards / "model.safetensors.index.json"
    raw = json.loads(index.read_text())
    for tensor, file in raw["weight_map"].items():
        if file.startswith("model-00001"):
            raw["weight_map"][tensor] = name
    index.write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="want a plain name"):
        Checkpoint(shards)


@pytest.mark.parametrize(
    "name", ["model-00002-of-00003.safetensors", "model.safetensors.index.json", "config.json", "catalogue.npz"]
)
@pytest.mark.parametrize("relative", [False, True])
def test_links_that_leave_the_directory(name: str, relative: bool, shards: Path) -> None:
    outside = shards.parent / "outside"
    shutil.move(shards / name, outside)
    (shards / name).symlink_to("../outside" if relative else outside)
    with pytest.raises(CheckpointError, match=f"{name} leads out of"):
        _open(shards)


def test_links_through_a_linked_folder(shards: Path) -> None:
    name = "model-00002-of-00003.safetensors"
    (shards.parent / "other").mkdir()
    shutil.move(shards / name, shards.parent / "other" / name)
    (shards / "inside").symlink_to(shards.parent / "other")
    (shards / name).symlink_to(f"inside/{name}")
    with pytest.raises(CheckpointError, match="leads out of"):
        Checkpoint(shards)


def test_links_within_the_directory_are_fine(shards: Path) -> None:
    name = "model-00002-of-00003.safetensors"
    shutil.move(shards / name, shards / "blob")
    (shards / name).symlink_to("blob")
    Checkpoint(shards).close()


def test_links_to_nowhere_and_to_themselves(shards: Path) -> None:
    name = "model-00002-of-00003.safetensors"
    (shards / name).unlink()
    for target in ("nowhere", name):
        (shards / name).symlink_to(target)
        with pytest.raises(CheckpointError, match="leads nowhere"):
            Checkpoint(shards)
        (shards / name).unlink()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["fifo", "folder"])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "catalogue.npz"])
def test_special_files(make: Callable[[Path], None], name: str, plain: Path) -> None:
    (plain / name).unlink()
    make(plain / name)
    with pytest.raises((CheckpointError, ConfigError)):
        _open(plain)


# --- index and shards ---


def _move(raw: dict[str, Any], tensor: str) -> None:
    files = sorted(set(raw["weight_map"].values()))
    raw["weight_map"][tensor] = next(file for file in files if file != raw["weight_map"][tensor])


INDICES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "moved": (
        lambda raw: _move(raw, "model.bos_embedding"),
        "holds the tensors model.bos_embedding.*lacks the tensors model.bos_embedding",
    ),
    "forgotten": (lambda raw: raw["weight_map"].pop("model.bos_embedding"), "holds the tensors model.bos_embedding"),
    "invented": (lambda raw: raw["weight_map"].update(x="model-00001-of-00003.safetensors"), "lacks the tensors x"),
    "absent shard": (lambda raw: raw["weight_map"].update(x="model-9.safetensors"), "'model-9.safetensors' is missing"),
    "number": (lambda raw: raw["weight_map"].update(x=1), "no weight_map of names to files"),
    "no map": (lambda raw: raw.pop("weight_map"), "no weight_map"),
    "list": (lambda raw: raw.update(weight_map=[]), "no weight_map"),
    "empty": (lambda raw: raw.update(weight_map={}), "missing: "),
    "many shards": (
        lambda raw: raw["weight_map"].update({f"t{i}": f"{i}.safetensors" for i in range(600)}),
        "603 shards, want at most",
    ),
}


@pytest.mark.parametrize("name", INDICES)
def test_index_and_shards_have_to_agree(name: str, shards: Path) -> None:
    change, message = INDICES[name]
    index = shards / "model.safetensors.index.json"
    raw = json.loads(index.read_text())
    change(raw)
    index.write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(shards)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"weight_map": {"a": "x", "a": "y"}}', "'a' twice"),
        (b" " * ((16 << 20) + 1), "more than"),
    ],
)
def test_hostile_index(text: bytes, message: str, shards: Path) -> None:
    (shards / "model.safetensors.index.json").write_bytes(text)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(shards)


def test_one_tensor_in_two_shards(shards: Path) -> None:
    shutil.copy(shards / "model-00001-of-00003.safetensors", shards / "model-00002-of-00003.safetensors")
    with pytest.raises(CheckpointError, match=r"holds the tensors .* that the index does not place there"):
        Checkpoint(shards)


def test_all_broken_shards_are_named(shards: Path) -> None:
    (shards / "model-00001-of-00003.safetensors").write_bytes(b"")
    (shards / "model-00003-of-00003.safetensors").write_bytes(_file(b"[]"))
    with pytest.raises(CheckpointError, match=r"model-00001.*model-00003"):
        Checkpoint(shards)
