"""What a command reports instead of a traceback."""

from __future__ import annotations

__all__ = ["CommandError", "UsageError"]


class CommandError(Exception):
    """Ends the command with one line on stderr.

    Attributes:
        code: the exit code.
    """

    code = 1


class UsageError(CommandError):
    """The command line, or a line of input, is wrong: exit code 2."""

    code = 2
