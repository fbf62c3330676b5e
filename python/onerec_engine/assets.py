"""The checkpoint that comes with the package."""

from __future__ import annotations

from pathlib import Path

from onerec_engine.errors import CheckpointError

__all__ = ["beauty_checkpoint"]


def beauty_checkpoint() -> Path:
    """The directory of the model trained on Amazon Beauty.

    Raises:
        CheckpointError: if this installation has none.
    """
    directory = Path(__file__).parent / "assets" / "beauty"
    if not (directory / "config.json").is_file():
        raise CheckpointError(
            f"[assets] found no checkpoint in {directory}. Install the package again, or name another."
        )
    return directory
