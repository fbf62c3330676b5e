"""Who is inside an engine, so that closing it can wait for them."""

from __future__ import annotations

import threading
from types import TracebackType

from onerec_engine.errors import EngineClosedError

__all__ = ["Usage"]


class Usage:
    """Counts the calls in flight; `use()` is a context manager that a closed engine refuses."""

    __slots__ = ("_active", "_changed", "_ended")

    def __init__(self) -> None:
        self._active = 0
        self._ended = False
        self._changed = threading.Condition()

    def use(self) -> Usage:
        """For `with`: the body runs before `end` returns.

        Raises:
            EngineClosedError: on entry, after `end`.
        """
        return self

    def end(self) -> bool:
        """Refuses further calls, waits for those in flight; false if another call has done so already."""
        with self._changed:
            if self._ended:
                return False
            self._ended = True
            self._changed.wait_for(lambda: self._active == 0)
            return True

    def __enter__(self) -> None:
        with self._changed:
            if self._ended:
                raise EngineClosedError("[engine] it is closed. Make a new one.")
            self._active += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._active -= 1
            if self._ended and self._active == 0:
                self._changed.notify_all()
