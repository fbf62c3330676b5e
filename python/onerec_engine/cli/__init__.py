"""The command ``onerec-engine``.

Exit codes: 0 success, 1 failure at run time, 2 wrong usage or arguments. Errors are one line on stderr.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import NoReturn

from onerec_engine.cli.failure import CommandError, UsageError
from onerec_engine.errors import CheckpointError, ConfigError, EngineError

__all__ = ["main"]

# name -> one line of help; each is a module of this package with `add_arguments(parser)` and `run(args)`.
COMMANDS = {
    "demo": "recommend for a few real user histories, in FP32 and FP8 side by side",
    "recommend": "histories in (arguments or JSON lines), ranked items out (JSON lines)",
    "evaluate": "recall and NDCG of a checkpoint on leave-one-out data",
    "quantize": "write a pre-quantised FP8 checkpoint",
    "inspect": "configuration, tensors, memory plan and value statistics of a checkpoint",
    "bench": "time requests over batch sizes, beam widths and precisions",
    "doctor": "what this installation is made of, and what it can use on this machine",
}
PROGRAM = "onerec-engine"


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Raises instead of printing the usage and exiting."""
        raise UsageError(f"[arguments] {message}. Try '{self.prog} --help'.")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: the arguments after the program's name; default `sys.argv`.

    Returns:
        the exit code.
    """
    debug = False
    try:
        args = _parser().parse_args(argv)
        debug = args.debug
        if args.command != "doctor" and find_spec("tqdm") is None:
            raise UsageError("[install] progress bars need tqdm. Run: pip install 'onerec_engine[cli]'")
        code = int(importlib.import_module(f"{__name__}.{args.command}").run(args))
        sys.stdout.flush()
    except SystemExit as stop:  # --help, --version
        return stop.code if isinstance(stop.code, int) else 2
    except BrokenPipeError:
        # The reader went away; a second failure while the interpreter flushes stdout would print a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return _report("[interrupted] stopped by the keyboard.", 1)
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _report(*_explain(error))
    return code


def _parser() -> Parser:
    parser = Parser(prog=PROGRAM, description="Inference engine for OneRec-V2 generative recommenders.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        importlib.import_module(f"{__name__}.{name}").add_arguments(command)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _explain(error: Exception) -> tuple[str, int]:
    """The line and the exit code for an exception."""
    if isinstance(error, CommandError):
        return str(error), error.code
    if isinstance(error, (ConfigError, CheckpointError, EngineError)):
        return str(error), 1
    if isinstance(error, ValueError) and str(error).startswith("["):
        return str(error), 2
    if isinstance(error, ImportError):
        return f"[install] {error}. Run '{PROGRAM} doctor'.", 1
    if isinstance(error, MemoryError):
        return f"[memory] {error or 'out of memory'}.", 1
    if isinstance(error, OSError):
        return f"[file] {error.filename or 'input or output'}: {error.strerror or error}.", 1
    return f"[internal] {type(error).__name__}: {error}. Run again with --debug for the traceback.", 1


def _report(message: str, code: int) -> int:
    print(f"{PROGRAM}: {' '.join(message.split())}", file=sys.stderr)
    return code


def _version() -> str:
    try:
        return version("onerec-engine")
    except PackageNotFoundError:
        return "(not installed)"
