"""Opening files from strangers."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

__all__ = ["open_regular"]


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file for reading, without buffering.

    Raises:
        FileNotFoundError: if there is no such file.
        OSError: if it cannot be read, or is a folder, a pipe or a device; `strerror` says which.
    """
    # Without O_NONBLOCK, opening a FIFO would wait for its writer.
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(0, "is no regular file")
        return open(fd, "rb", buffering=0)
    except BaseException:
        os.close(fd)
        raise
