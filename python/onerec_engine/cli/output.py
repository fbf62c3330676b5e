"""Tables, numbers and JSON as the commands print them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from onerec_engine.cli.failure import CommandError

__all__ = ["byte_text", "count_text", "say", "table", "write_json"]


def table(headers: Sequence[str], rows: Sequence[Sequence[object]], align: str = "") -> str:
    """A plain table: two spaces between columns, a rule under the headers.

    Args:
        headers: column titles.
        rows: cells; each is shown by `str`.
        align: one of ``<`` and ``>`` per column; missing ones are ``<``.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(headers), *cells]) for i in range(len(headers))]
    sides = align.ljust(len(headers), "<")

    def line(row: Sequence[str]) -> str:
        return "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)).rstrip()

    return "\n".join([line(headers), "  ".join("-" * width for width in widths), *map(line, cells)])


def byte_text(count: float) -> str:
    """A number of bytes with three digits and a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.{_decimals(count)}f} {unit}"
        count /= 1024
    return f"{count:.{_decimals(count)}f} TiB"


def count_text(count: float) -> str:
    """A large count in thousands, millions or billions."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= limit:
            return f"{count / limit:.{_decimals(count / limit)}f} {unit}"
    return f"{count:.0f}"


def say(text: str, json_target: str | None = None) -> None:
    """Prints for people, unless stdout is taken by ``--json -``."""
    if json_target != "-":
        print(text)


def write_json(target: str | None, content: Mapping[str, Any]) -> None:
    """Writes what ``--json`` asked for: a file, stdout for ``-``, nothing for None."""
    if target is None:
        return
    text = json.dumps(content, indent=2) + "\n"
    if target == "-":
        sys.stdout.write(text)
        return
    try:
        with open(target, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise CommandError(f"[json] cannot write {target}: {error.strerror}.") from None


def _decimals(value: float) -> int:
    return 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
