"""JSON files from strangers: read with a limit on their size, and stricter than `json.loads` is by default."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, BinaryIO

from onerec_engine._regular_file import open_regular

__all__ = ["JsonError", "parse_json", "quote", "read_json"]

MAX_JSON_BYTES = 16 << 20
"""No configuration file is larger: an index of 100,000 tensors takes 9 MB."""


class JsonError(ValueError):
    """A file is no acceptable JSON. The message is a phrase such as ``holds the key 'a' twice``."""


def quote(value: object, limit: int = 120) -> str:
    """`repr`, cut to `limit` characters, for names and values that a file controls."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or a nest of lists
        return f"<{type(value).__name__}>"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def parse_json(data: bytes) -> Any:
    """Parses UTF-8 JSON without duplicate keys, NaN, infinities, and without nests that exhaust the stack.

    Raises:
        JsonError: for anything else.
    """
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant)
    except JsonError:
        raise
    except UnicodeDecodeError:
        raise JsonError("is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise JsonError(f"is not JSON: {error}") from None
    except RecursionError:
        raise JsonError("is nested too deeply") from None
    except ValueError as error:  # an integer of thousands of digits
        raise JsonError(f"is not acceptable JSON: {error}") from None


def read_json(path: Path, *, limit: int = MAX_JSON_BYTES) -> Any:
    """Reads a regular file of at most `limit` bytes with `parse_json`.

    Raises:
        FileNotFoundError: if there is no such file.
        JsonError: if it is no regular file, cannot be read, is too large or no acceptable JSON.
    """
    try:
        with open_regular(path) as file:
            data = _read(file, limit + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise JsonError(f"cannot be read: {error.strerror}") from None
    if len(data) > limit:
        raise JsonError(f"has more than {limit} bytes")
    return parse_json(data)


def _read(file: BinaryIO, most: int) -> bytes:
    out = bytearray()
    while len(out) < most and (more := file.read(min(most - len(out), 1 << 20))):
        out += more
    return bytes(out)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise JsonError(f"holds the key {quote(twice)} twice")
    return out


def _constant(name: str) -> Any:
    raise JsonError(f"holds {name}, which JSON does not have")
