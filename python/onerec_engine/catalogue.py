"""The items: ids and the semantic ids the model knows them by."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from onerec_engine._files import available_memory, checkpoint_directory, checkpoint_file
from onerec_engine._regular_file import open_regular
from onerec_engine._safetensors import SafetensorsError, SafetensorsFile
from onerec_engine.config import MAX_LEVELS
from onerec_engine.errors import CheckpointError

__all__ = ["Catalogue"]

FILES = ("catalogue.npz", "catalogue.safetensors")
MAX_ITEMS = (1 << 31) - 2
"""Positions of items are 32-bit."""

_ARRAYS = ("item_ids", "semantic_ids")


class Catalogue:
    """Item ids and their semantic ids. Immutable.

    Attributes:
        item_ids: int64 [n], ascending and distinct.
        semantic_ids: int32 [n, levels] in the same order; several items may share one.
        codebook_sizes: codes per level.
    """

    __slots__ = ("codebook_sizes", "item_ids", "semantic_ids")

    def __init__(self, item_ids: npt.ArrayLike, semantic_ids: npt.ArrayLike, *, codebook_sizes: Sequence[int]) -> None:
        """Sorts and checks the items.

        Args:
            item_ids: any distinct 64-bit integers [n], n >= 1.
            semantic_ids: integers [n, levels], code t in [0, codebook_sizes[t]).
            codebook_sizes: codes per level.

        Raises:
            ValueError: for anything else, such as a code its codebook does not have.
        """
        ids, codes = np.asarray(item_ids), np.asarray(semantic_ids)
        sizes = tuple(int(size) for size in codebook_sizes)
        if ids.dtype.kind not in "iu" or ids.ndim != 1 or not 1 <= ids.size <= MAX_ITEMS:
            raise ValueError(f"[catalogue] got item_ids {_kind(ids)}, want 1 to {MAX_ITEMS} integers.")
        if ids.dtype == np.uint64 and ids.max() > np.iinfo(np.int64).max:
            raise ValueError(f"[catalogue] got item id {ids.max()}, want a signed 64-bit integer.")
        if codes.dtype.kind not in "iu" or codes.shape != (ids.size, len(sizes)):
            raise ValueError(
                f"[catalogue] got semantic_ids {_kind(codes)}, want integers {[ids.size, len(sizes)]}: "
                "one row per item, one code per level."
            )
        for level, size in enumerate(sizes):
            low, high = codes[:, level].min(), codes[:, level].max()
            if low < 0 or high >= size:
                raise ValueError(
                    f"[catalogue] got codes {low} to {high} at level {level}, want 0 to {size - 1}: "
                    f"the model's codebook {level} has {size} codes."
                )
        ids = ids.astype(np.int64)
        if not (ids[1:] > ids[:-1]).all():
            order = np.argsort(ids, kind="stable")
            ids, codes = ids[order], codes[order]
            if (twice := np.flatnonzero(ids[1:] == ids[:-1])).size:
                raise ValueError(f"[catalogue] got item id {ids[twice[0]]} twice, want distinct ids.")
        self.codebook_sizes = sizes
        self.item_ids: npt.NDArray[np.int64] = ids
        self.semantic_ids: npt.NDArray[np.int32] = np.array(codes, np.int32, order="C")
        self.item_ids.flags.writeable = False
        self.semantic_ids.flags.writeable = False

    @staticmethod
    def load(path: str | os.PathLike[str], *, codebook_sizes: Sequence[int]) -> Catalogue:
        """Reads `catalogue.npz` or `catalogue.safetensors`: `item_ids` [n] and `semantic_ids` [n, levels].

        Args:
            path: a checkpoint directory.
            codebook_sizes: codes per level of its model.

        Raises:
            CheckpointError: if there is none or two, if it is damaged, if its arrays take more memory than there is, or
                if its items do not fit the model.
        """
        directory = checkpoint_directory(path)
        found = {name: file for name in FILES if (file := checkpoint_file(directory, name)) is not None}
        if len(found) != 1:
            which = "both" if found else "neither"
            raise CheckpointError(f"[catalogue] found {which} of {' and '.join(FILES)} in {directory}, want one.")
        ((name, file),) = found.items()
        try:
            arrays = _read_npz(file) if name.endswith(".npz") else _read_safetensors(file)
            return Catalogue(arrays["item_ids"], arrays["semantic_ids"], codebook_sizes=codebook_sizes)
        except (ValueError, MemoryError) as error:
            reason = str(error).removeprefix("[catalogue] ") or "not enough memory"
            raise CheckpointError(f"[catalogue] {name}: {reason}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `catalogue.npz` into directory `path`, codes in the narrowest type that holds them."""
        narrow = np.min_scalar_type(max(self.codebook_sizes) - 1)
        arrays: dict[str, Any] = {"item_ids": self.item_ids, "semantic_ids": self.semantic_ids.astype(narrow)}
        np.savez(Path(path) / FILES[0], **arrays)

    def __len__(self) -> int:
        return int(self.item_ids.size)

    @property
    def levels(self) -> int:
        """Codes per item."""
        return len(self.codebook_sizes)

    def find(self, item_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Where items are in `item_ids` and `semantic_ids`.

        Args:
            item_ids: int64 of any shape.

        Returns:
            int64 of that shape; -1 for ids the catalogue does not have.
        """
        from onerec_engine._C import find_ids

        return find_ids(self.item_ids, item_ids.ravel()).reshape(item_ids.shape)


def _kind(array: npt.NDArray[Any]) -> str:
    return f"{array.dtype} {list(array.shape)}"


class _Header(NamedTuple):
    """The header of an array in a zip archive."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def _read_npz(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Reads the two arrays, after looking at their headers: an archive of a few bytes can claim terabytes."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            names = [info.filename for info in archive.infolist()]
            for name in _ARRAYS:
                if names.count(f"{name}.npy") != 1:
                    raise ValueError(f"holds {names.count(f'{name}.npy')} arrays {name}, want one. Write it again.")
            for name in _ARRAYS:
                _check_member(archive, f"{name}.npy")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in _ARRAYS}
    except ValueError:
        raise
    except Exception as error:  # a damaged archive makes zipfile, zlib and NumPy raise almost anything
        raise ValueError(f"cannot be read: {type(error).__name__}: {error}. Write it again.") from None


def _check_member(archive: zipfile.ZipFile, name: str) -> None:
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        header = _Header(shape, dtype)
        size = int(np.prod([int(n) for n in header.shape], dtype=object)) * header.dtype.itemsize
        if header.dtype.kind not in "iu" or len(header.shape) not in (1, 2) or min(header.shape) < 0:
            raise ValueError(f"{name}: got {header.dtype} {list(header.shape)}, want integers. Write it again.")
        if file.tell() + size != archive.getinfo(name).file_size:
            raise ValueError(f"{name}: has another size than its header says. Write it again.")
        _check_memory(size)


def _read_safetensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        file = SafetensorsFile(path, max_header_bytes=1 << 20)
    except SafetensorsError as error:
        raise ValueError(f"{error}. Write it again.") from None
    out = {}
    try:
        if set(file.entries) != set(_ARRAYS):
            raise ValueError(f"holds the tensors {sorted(file.entries)[:9]}, want item_ids and semantic_ids.")
        for name, entry in file.entries.items():
            if entry.dtype[0] not in "IU":
                raise ValueError(f"{name}: got {entry.dtype}, want integers. Write it again.")
            _check_memory(entry.size)
            raw = np.empty(entry.size, np.uint8)
            file.read_into(entry, raw)
            kind = f"<{entry.dtype[0].lower()}{int(entry.dtype[1:]) // 8}"
            out[name] = raw.view(kind).reshape(entry.shape)
    except SafetensorsError as error:
        raise ValueError(f"{error}. Write it again.") from None
    finally:
        file.close()
    return out


def _check_memory(size: int) -> None:
    limit = min(available_memory(), MAX_ITEMS * MAX_LEVELS * 8)
    if size > limit:
        raise ValueError(f"has an array of {size} bytes, want at most {limit}, which is what is free here.")
