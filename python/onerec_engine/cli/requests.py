"""Requests as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onerec_engine.cli.failure import UsageError

if TYPE_CHECKING:
    from onerec_engine.request import Request

__all__ = ["Numbered", "read_examples", "read_requests"]

_FIELDS = ("history", "features", "exclude", "exclude_history", "beam_width", "num_results", "constrained")


@dataclass(frozen=True, slots=True)
class Numbered:
    """A request and where it came from.

    Attributes:
        where: such as ``line 3``.
        id: what the line called it; None if nothing.
        request: the request.
        target: the item the user went on to choose, where the line tells.
    """

    where: str
    id: Any
    request: Request
    target: int | None = None


def read_requests(lines: Iterable[str]) -> Iterator[Numbered]:
    """Parses one request per line; empty lines are passed over.

    Args:
        lines: JSON objects with ``history`` and optionally ``id`` and the other settings of a `Request`; ``target``
            is kept aside.

    Raises:
        UsageError: naming the line.
    """
    number = 0
    try:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _read(line, f"line {number}")
    except UnicodeDecodeError as error:
        raise UsageError(f"[input] after line {number}: no UTF-8: {error.reason}.") from None


def read_examples(checkpoint: Path) -> list[Numbered]:
    """The example requests that lie beside a checkpoint's weights; empty if it has none."""
    file = checkpoint / "example_requests.jsonl"
    if not file.is_file():
        return []
    return list(read_requests(file.read_text(encoding="utf-8").splitlines()))


def _read(line: str, where: str) -> Numbered:
    from onerec_engine.request import Request

    try:
        raw = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UsageError(f"[input] {where}: no JSON: {error}.") from None
    if not isinstance(raw, dict):
        raise UsageError(f"[input] {where}: got {type(raw).__name__}, want an object with a history.")
    unknown = sorted(set(raw) - {*_FIELDS, "id", "target"})
    if unknown or "history" not in raw:
        want = "history and optionally id, " + ", ".join(_FIELDS[1:])
        raise UsageError(f"[input] {where}: unknown fields {unknown}, want {want}.")
    target = raw.get("target")
    if target is not None and not isinstance(target, int):
        raise UsageError(f"[input] {where}: got target {target!r}, want an item id.")
    try:
        request = Request(**{name: raw[name] for name in _FIELDS if raw.get(name) is not None})
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"[input] {where}: {error}") from None
    return Numbered(where, raw.get("id"), request, target)
