"""Progress on stderr for whatever takes longer than a moment."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["bar", "waiting"]

_DELAY = 1.5  # seconds before anything is shown


def bar(total: int, title: str, unit: str, **options: Any) -> Any:
    """A tqdm bar that appears after a moment and leaves no trace; use it as a context manager.

    Args:
        total: units of work.
        title: what is being done.
        unit: what is counted, as shown.
        options: further options of tqdm, such as ``unit_scale``.
    """
    from tqdm import tqdm

    return tqdm(
        total=total,
        desc=title,
        unit=f" {unit}",
        file=sys.stderr,
        delay=_DELAY,
        mininterval=0.2 if sys.stderr.isatty() else 5.0,
        leave=False,
        dynamic_ncols=True,
        **options,
    )


@contextmanager
def waiting(title: str) -> Iterator[None]:
    """Shows `title` and the seconds passed while something runs whose progress is unknown."""
    from tqdm import tqdm

    done = threading.Event()
    interval = 0.5 if sys.stderr.isatty() else 5.0

    def show() -> None:
        if done.wait(_DELAY):
            return
        with tqdm(desc=title, bar_format="{desc} ... {elapsed}", file=sys.stderr, leave=False, mininterval=0) as shown:
            shown.start_t -= _DELAY
            while not done.wait(interval):
                shown.refresh()

    thread = threading.Thread(target=show, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
