"""Files of a checkpoint directory, none of which may lie outside it."""

from __future__ import annotations

import os
from pathlib import Path

from onerec_engine._json import quote
from onerec_engine.errors import CheckpointError

__all__ = ["available_memory", "checkpoint_directory", "checkpoint_file"]


def checkpoint_directory(path: str | os.PathLike[str]) -> Path:
    """The directory with symbolic links followed.

    Raises:
        CheckpointError: if there is none.
    """
    try:
        directory = Path(path).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        directory = None
    if directory is None or not directory.is_dir():
        raise CheckpointError(f"[checkpoint] found no directory {path}. Give the path of a checkpoint directory.")
    return directory


def checkpoint_file(directory: Path, name: str) -> Path | None:
    """The file `name` of a directory that `checkpoint_directory` returned, links followed; None if there is none.

    Raises:
        CheckpointError: if the name, or the link it stands for, leads out of the directory.
    """
    if not name or "/" in name or "\\" in name or "\0" in name or name in (".", ".."):
        raise CheckpointError(f"[checkpoint] got the file name {quote(name)}, want a plain name. Correct the index.")
    path = directory / name
    if not os.path.lexists(path):
        return None
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"[checkpoint] {name} leads nowhere: {error}. Restore the file.") from None
    if not real.is_relative_to(directory):
        raise CheckpointError(
            f"[checkpoint] {name} leads out of {directory}, want a file inside it. Copy the file into the directory."
        )
    return real


def available_memory() -> int:
    """Bytes of memory that can be had without swapping; a very large number where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 1 << 62
