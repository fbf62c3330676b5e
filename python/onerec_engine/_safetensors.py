"""The safetensors container: headers checked byte for byte, and a writer that holds one tensor at a time.

A file is an 8-byte little-endian length n, n bytes of JSON and the tensors' bytes. The JSON maps a name to
``{"dtype", "shape", "data_offsets"}``, offsets counting from the end of the JSON; the tensors lie end to end.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onerec_engine._json import JsonError, parse_json, quote
from onerec_engine._regular_file import open_regular

__all__ = ["Entry", "SafetensorsError", "SafetensorsFile", "write_safetensors"]

DTYPE_BYTES = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "BOOL": 1},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1},
}
_MAX_DIMENSIONS = 8
_MAX_PROBLEMS = 20


class SafetensorsError(ValueError):
    """A file is no sound safetensors file. `problems` has a phrase for each thing wrong."""

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor in a file.

    Attributes:
        dtype: as safetensors names it.
        shape: its shape.
        begin: offset of its first byte in the file.
        size: its bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    size: int


class SafetensorsFile:
    """An open file whose header has been checked; tensors are read into memory the caller owns.

    The bytes are read, never mapped: what was read does not stay resident, and a file that shrinks under us raises an
    error where a mapping would end the process.
    """

    def __init__(self, path: Path, *, max_header_bytes: int) -> None:
        """Opens the file and checks its header.

        Args:
            path: a regular file.
            max_header_bytes: the longest JSON accepted.

        Raises:
            SafetensorsError: if anything is wrong with it.
        """
        self.path = path
        try:
            self._file = open_regular(path)
        except OSError as error:
            raise SafetensorsError(f"cannot be opened: {error.strerror}") from None
        try:
            self.entries = _read_header(self._file.fileno(), max_header_bytes)
        except BaseException:
            self.close()
            raise

    def read_into(self, entry: Entry, out: npt.NDArray[np.uint8]) -> None:
        """Reads a tensor's bytes into `out`, uint8 [entry.size].

        Raises:
            SafetensorsError: if the file has become shorter.
        """
        _read_exactly(self._file.fileno(), out.data, entry.begin)

    def close(self) -> None:
        """Closes the file; nothing happens the second time."""
        self._file.close()


def _read_exactly(fd: int, out: memoryview, offset: int) -> None:
    done = 0
    while done < len(out):
        try:
            count = os.preadv(fd, [out[done:]], offset + done)
        except OSError as error:
            raise SafetensorsError(f"cannot be read: {error.strerror}") from None
        if count == 0:
            raise SafetensorsError(f"ends at byte {offset + done}, want at least {offset + len(out)} bytes")
        done += count


def _read_header(fd: int, limit: int) -> dict[str, Entry]:
    size = os.fstat(fd).st_size
    if size < 8:
        raise SafetensorsError(f"has {size} bytes, want at least 8 for the header's length")
    prefix = bytearray(8)
    _read_exactly(fd, memoryview(prefix), 0)
    length = int.from_bytes(prefix, "little")
    if length > limit:
        raise SafetensorsError(f"claims a header of {length} bytes, want at most {limit} for this model")
    if 8 + length > size:
        raise SafetensorsError(f"claims a header of {length} bytes, but only {size - 8} bytes follow")
    text = bytearray(length)
    _read_exactly(fd, memoryview(text), 8)
    if not text.startswith(b"{"):
        raise SafetensorsError("has a header that is no JSON object")
    try:
        raw = parse_json(bytes(text))
    except JsonError as error:
        raise SafetensorsError(f"has a header that {error}") from None
    return _entries(raw, 8 + length, size - 8 - length)


def _entries(raw: Any, start: int, data_bytes: int) -> dict[str, Entry]:
    problems: list[str] = []
    metadata = raw.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        problems.append("has __metadata__ that is no map of strings")
    entries: dict[str, Entry] = {}
    for name, value in raw.items():
        problem = _entry_problem(value, data_bytes)
        if problem:
            problems.append(f"tensor {quote(name)}: {problem}")
            if len(problems) >= _MAX_PROBLEMS:
                break
            continue
        begin, end = value["data_offsets"]
        entries[name] = Entry(value["dtype"], tuple(value["shape"]), start + begin, end - begin)
    if not problems:
        problems = _layout_problems(entries, start, data_bytes)
    if problems:
        raise SafetensorsError(*problems)
    return entries


def _entry_problem(value: Any, data_bytes: int) -> str:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        return f"got {quote(value)}, want dtype, shape and data_offsets"
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        return f"got dtype {quote(dtype)}, want one that safetensors knows"
    if not _is_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        return f"got shape {quote(shape)}, want at most {_MAX_DIMENSIONS} integers of at least 0"
    if not _is_sizes(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= data_bytes:
        return f"got data_offsets {quote(offsets)}, want [begin, end] within {data_bytes} bytes"
    want = math.prod(shape) * DTYPE_BYTES[dtype]
    if offsets[1] - offsets[0] != want:
        return f"{offsets[1] - offsets[0]} bytes, want {want} for {dtype} {quote(shape)}"
    return ""


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in value)


def _layout_problems(entries: Mapping[str, Entry], start: int, data_bytes: int) -> list[str]:
    """Whether the tensors lie end to end and fill the file."""
    problems = []
    reached = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].size)):
        if entry.begin != reached:
            what = "overlaps the tensor before it" if entry.begin < reached else "leaves a hole before it"
            problems.append(f"tensor {quote(name)} {what}: begins at {entry.begin - start}, want {reached - start}")
            if len(problems) >= _MAX_PROBLEMS:
                return problems
        reached = max(reached, entry.begin + entry.size)
    if reached != start + data_bytes:
        problems.append(f"has {start + data_bytes - reached} trailing bytes behind its last tensor")
    return problems


def write_safetensors(
    path: Path,
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    values: Iterable[tuple[str, npt.NDArray[np.uint8]]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a file one tensor at a time; an interrupted call leaves no file of that name.

    Args:
        path: the file.
        tensors: dtype and shape of each tensor. The file has the wide dtypes first, which keeps every tensor aligned.
        values: each name once, in any order, with its bytes, uint8 [n]; taken one by one.
        metadata: the header's ``__metadata__``.

    Raises:
        ValueError: if a tensor is missing, given twice, or its bytes do not fit its shape; a mistake of the caller.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: (-DTYPE_BYTES[item[1][0]], item[0])):
        size = math.prod(shape) * DTYPE_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    left = set(tensors)
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name, value in values:
                begin, stop = header[name]["data_offsets"]
                if name not in left or value.nbytes != stop - begin:
                    raise ValueError(f"[safetensors] got {value.nbytes} bytes of {name}, want {stop - begin}, once.")
                left.remove(name)
                file.seek(8 + len(text) + begin)
                file.write(np.ascontiguousarray(value).data)
            if left:
                raise ValueError(f"[safetensors] got no values of {sorted(left)}.")
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
