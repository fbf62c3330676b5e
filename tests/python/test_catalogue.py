"""Items and their semantic ids: reading, checking, and looking up both ways."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save_file

from onerec_engine._trie_index import TrieIndex
from onerec_engine.catalogue import Catalogue
from onerec_engine.errors import CheckpointError

SIZES = (4, 3, 5)
IDS = np.array([7, -3, 2**62, 0], np.int64)
CODES = np.array([[3, 2, 4], [0, 0, 0], [1, 2, 3], [0, 0, 0]], np.uint8)


def _load(directory: Path) -> Catalogue:
    return Catalogue.load(directory, codebook_sizes=SIZES)


def test_sorts_by_id() -> None:
    catalogue = Catalogue(IDS, CODES, codebook_sizes=SIZES)
    assert catalogue.item_ids.tolist() == [-3, 0, 7, 2**62]
    assert catalogue.semantic_ids.tolist() == [[0, 0, 0], [0, 0, 0], [3, 2, 4], [1, 2, 3]]
    assert catalogue.item_ids.dtype == np.int64
    assert catalogue.semantic_ids.dtype == np.int32
    assert catalogue.semantic_ids.flags.c_contiguous
    assert len(catalogue) == 4
    assert catalogue.levels == 3


def test_cannot_be_changed_from_outside() -> None:
    ids, codes = np.arange(4), CODES.astype(np.int32)
    catalogue = Catalogue(ids, codes, codebook_sizes=SIZES)
    ids[0] = codes[0, 0] = 2
    assert catalogue.item_ids[0] == 0
    assert catalogue.semantic_ids[0, 0] == 3
    with pytest.raises(ValueError, match="read-only"):
        catalogue.item_ids[0] = 5


@pytest.mark.parametrize(
    ("ids", "codes", "message"),
    [
        ([1, 2], [[0, 0, 0]], r"semantic_ids int64 \[1, 3\], want integers \[2, 3\]"),
        ([1], [[0, 0]], r"\[1, 2\]"),
        ([], np.empty((0, 3), int), "want 1 to"),
        ([1.0], [[0, 0, 0]], "item_ids float64"),
        ([[1]], [[0, 0, 0]], "item_ids"),
        (["a"], [[0, 0, 0]], "item_ids <U1"),
        ([True], [[0, 0, 0]], "item_ids bool"),
        ([2**64 - 1], [[0, 0, 0]], "signed 64-bit"),
        ([1], [[0.0, 0, 0]], "semantic_ids float64"),
        ([1], [[0, 3, 0]], "codes 3 to 3 at level 1, want 0 to 2"),
        ([1], [[0, 0, -1]], "codes -1 to -1 at level 2"),
        ([5, 1, 5], [[0, 0, 0]] * 3, "item id 5 twice"),
    ],
)
def test_refuses(ids: Any, codes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Catalogue(np.array(ids), np.array(codes), codebook_sizes=SIZES)


id_arrays = st.one_of(
    hnp.arrays(np.int64, st.integers(1, 20), elements=st.integers(-(2**63), 2**63 - 1), unique=True),
    st.integers(-(2**63), 2**63 - 50).flatmap(lambda low: st.integers(1, 20).map(lambda n: np.arange(n) + low)),
)


@settings(deadline=None)
@given(ids=id_arrays, others=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5))
def test_finds_ids(ids: np.ndarray[Any, Any], others: list[int]) -> None:
    codes = np.zeros((ids.size, 3), np.int32)
    catalogue = Catalogue(ids, codes, codebook_sizes=SIZES)
    edges = [-(2**63), 2**63 - 1, int(ids.min()) - 1, int(ids.max()) + 1]
    asked = np.array([*ids.tolist(), *others, *(e for e in edges if -(2**63) <= e < 2**63)], np.int64)
    places = {int(item): i for i, item in enumerate(catalogue.item_ids)}
    assert catalogue.find(asked).tolist() == [places.get(int(item), -1) for item in asked]
    assert catalogue.find(asked[:0]).size == 0


# --- files ---


@pytest.mark.parametrize("kind", ["npz", "compressed", "safetensors"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64, np.uint64])
def test_reads_files(kind: str, dtype: type[np.generic], tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"item_ids": IDS, "semantic_ids": CODES.astype(dtype)}
    if kind == "safetensors":
        save_file(arrays, tmp_path / "catalogue.safetensors")
    else:
        (np.savez if kind == "npz" else np.savez_compressed)(tmp_path / "catalogue.npz", **arrays)
    catalogue = _load(tmp_path)
    assert catalogue.item_ids.tolist() == [-3, 0, 7, 2**62]
    assert catalogue.semantic_ids.tolist() == [[0, 0, 0], [0, 0, 0], [3, 2, 4], [1, 2, 3]]


def test_reads_fortran_order(tmp_path: Path) -> None:
    np.savez(tmp_path / "catalogue.npz", item_ids=IDS, semantic_ids=np.asfortranarray(CODES))
    assert _load(tmp_path).semantic_ids[2].tolist() == [3, 2, 4]


def test_saves_what_it_reads(tmp_path: Path) -> None:
    Catalogue(IDS, CODES, codebook_sizes=SIZES).save(tmp_path)
    with np.load(tmp_path / "catalogue.npz") as arrays:
        assert arrays["semantic_ids"].dtype == np.uint8
    assert _load(tmp_path).item_ids.tolist() == sorted(IDS.tolist())


def test_one_file_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found neither of"):
        _load(tmp_path)
    Catalogue(IDS, CODES, codebook_sizes=SIZES).save(tmp_path)
    save_file({"item_ids": IDS, "semantic_ids": CODES}, tmp_path / "catalogue.safetensors")
    with pytest.raises(CheckpointError, match="found both of"):
        _load(tmp_path)


@pytest.mark.parametrize(
    "arrays",
    [
        {"item_ids": IDS},
        {"item_ids": IDS, "semantic_ids": CODES.astype(float)},
        {"item_ids": IDS.astype(object), "semantic_ids": CODES},
        {"item_ids": np.array([{"a": 1}] * 4, object), "semantic_ids": CODES},
        {"item_ids": IDS.astype([("a", "i8")]), "semantic_ids": CODES},
        {"item_ids": np.int64(3), "semantic_ids": CODES},
        {"item_ids": IDS, "semantic_ids": CODES + 3},
        {"item_ids": IDS[:3], "semantic_ids": CODES},
    ],
)
def test_refuses_arrays(arrays: dict[str, Any], tmp_path: Path) -> None:
    np.savez(tmp_path / "catalogue.npz", **arrays)
    with pytest.raises(CheckpointError, match=r"^\[catalogue\] catalogue.npz: "):
        _load(tmp_path)


def test_codebook_too_small_for_the_catalogue(tmp_path: Path) -> None:
    np.savez(tmp_path / "catalogue.npz", item_ids=IDS, semantic_ids=CODES)
    with pytest.raises(
        CheckpointError, match="codes 0 to 3 at level 0, want 0 to 2: the model's codebook 0 has 3 codes"
    ):
        Catalogue.load(tmp_path, codebook_sizes=(3, 3, 5))


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "catalogue.npz"
    np.savez_compressed(file, item_ids=IDS, semantic_ids=CODES)
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"catalogue\.npz"):
            _load(tmp_path)


def test_flipped_bits_raise_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "catalogue.npz"
    np.savez_compressed(file, item_ids=IDS, semantic_ids=CODES)
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(0, 8))
        file.write_bytes(damaged)
        try:
            _load(tmp_path)
        except CheckpointError as error:
            assert "catalogue.npz: " in str(error)  # noqa: PT017 - some bits do not matter


def _npy(shape: str, data: bytes = b"") -> bytes:
    header = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


@pytest.mark.parametrize(
    "shape", ["(1000000000000,)", "(-1,)", "(2, 2, 2)", "(99999999999999999999,)", "(1 << 40,)", "'4'", "(4,"]
)
def test_headers_that_claim_too_much(shape: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "catalogue.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("item_ids.npy", _npy(shape))
        archive.writestr("semantic_ids.npy", _npy("(4, 3)", bytes(96)))
    with pytest.raises(CheckpointError, match=r"catalogue\.npz: "):
        _load(tmp_path)


def test_a_zip_that_holds_an_array_twice(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, item_ids=IDS, semantic_ids=CODES)
    with zipfile.ZipFile(buffer, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("item_ids.npy", _npy("(4,)", bytes(32)))
    (tmp_path / "catalogue.npz").write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError, match="holds 2 arrays item_ids"):
        _load(tmp_path)


def test_a_large_safetensors_claim(tmp_path: Path) -> None:
    size = 8 << 40
    entries = {
        "item_ids": {"dtype": "I64", "shape": [size // 8], "data_offsets": [0, size]},
        "semantic_ids": {"dtype": "U8", "shape": [0, 3], "data_offsets": [size, size]},
    }
    header = json.dumps(entries).encode()
    with open(tmp_path / "catalogue.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        try:
            file.truncate(8 + len(header) + size)
        except OSError:
            pytest.skip("the file system refuses sparse files of this size")
    with pytest.raises(CheckpointError, match=f"has an array of {size} bytes"):
        _load(tmp_path)


# --- trie order ---


def _random(seed: int, items: int, sizes: tuple[int, ...]) -> Catalogue:
    rng = np.random.default_rng(seed)
    ids = rng.permutation(3 * items)[:items]
    return Catalogue(ids, np.column_stack([rng.integers(0, s, items) for s in sizes]), codebook_sizes=sizes)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    items=st.integers(1, 60),
    sizes=st.lists(st.sampled_from([1, 2, 5, 65_536]), min_size=1, max_size=8).map(tuple),
)
def test_trie_order(seed: int, items: int, sizes: tuple[int, ...]) -> None:
    catalogue = _random(seed, items, sizes)
    trie = TrieIndex(catalogue)
    rows = [(tuple(codes), int(item)) for codes, item in zip(catalogue.semantic_ids, catalogue.item_ids, strict=True)]
    assert [rows[i] for i in trie.order] == sorted(rows)
    assert trie.position[trie.order].tolist() == list(range(items))
    tuples = sorted({codes for codes, _ in rows})
    assert trie.edges == tuple(len({codes[: t + 1] for codes in tuples}) for t in range(len(sizes)))
    assert trie.leaf_items.tolist() == [
        *(min(i for i, r in enumerate(sorted(rows)) if r[0] == t) for t in tuples),
        items,
    ]


def test_given_order_is_used() -> None:
    catalogue = _random(1, 50, SIZES)
    own = TrieIndex(catalogue)
    same = TrieIndex(catalogue, own.order.astype(np.int64), own.leaf_items)
    assert same.edges == own.edges
    np.testing.assert_array_equal(same.position, own.position)
