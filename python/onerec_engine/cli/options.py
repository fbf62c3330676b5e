"""Arguments that several commands share, and the engine made from them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onerec_engine.cli.failure import CommandError
from onerec_engine.cli.progress import waiting
from onerec_engine.evaluation import Interactions

if TYPE_CHECKING:
    from onerec_engine.engine import Engine

__all__ = [
    "add_checkpoint",
    "add_engine",
    "add_json",
    "add_precision",
    "beam_width",
    "checkpoint_path",
    "integers",
    "kept",
    "load_interactions",
    "open_engine",
    "positive",
    "widest",
]

PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32", "quantization": None},
    "bf16": {"precision": "bf16", "quantization": None},
    "fp8": {"precision": None, "quantization": "fp8"},
    "fp8_channel": {"precision": None, "quantization": "fp8_channel"},
}
"""Names of a precision on the command line -> arguments of `Engine.from_checkpoint`."""


def positive(text: str) -> int:
    """Reads an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {text}, want at least 1")
    return value


def integers(text: str) -> list[int]:
    """Reads integers with commas between them; an empty text is an empty list."""
    try:
        return [int(part) for part in text.split(",")] if text.strip() else []
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, want integers with commas between them") from None


def beam_width(text: str) -> int | list[int]:
    """Reads a beam width: one integer, or one per level with commas between them."""
    widths = [positive(str(width)) for width in integers(text)]
    if not widths:
        raise argparse.ArgumentTypeError("got nothing, want an integer or one per level")
    return widths[0] if len(widths) == 1 else widths


def kept(width: int | list[int]) -> int:
    """Beams that are left after the last level: the most results a request can have."""
    return width if isinstance(width, int) else width[-1]


def widest(width: int | list[int]) -> int:
    """The largest beam width of any level."""
    return width if isinstance(width, int) else max(width)


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Adds ``--checkpoint``."""
    parser.add_argument(
        "--checkpoint", metavar="DIR", help="checkpoint directory (default: the bundled Amazon Beauty model)"
    )


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Adds ``--quantization`` and ``--precision``."""
    parser.add_argument(
        "--quantization",
        choices=("none", "fp8", "fp8_channel"),
        default="none",
        help="fp8: the paper's scheme; fp8_channel: routed experts per channel and per token as well (default: none)",
    )
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="of weights and activations without quantisation")


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Adds ``--device`` and ``--threads``."""
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: the engine's choice)")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds ``--json``."""
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON; - is stdout, instead of the text")


def checkpoint_path(args: argparse.Namespace) -> Path:
    """The checkpoint asked for, or the bundled one."""
    if args.checkpoint is not None:
        return Path(args.checkpoint)
    from onerec_engine.assets import beauty_checkpoint

    return beauty_checkpoint()


def load_interactions(path: str) -> Interactions:
    """Reads an interaction file; one that cannot be read is a failure at run time, not a wrong argument."""
    try:
        return Interactions.load(path)
    except ValueError as error:
        raise CommandError(str(error)) from None


def open_engine(args: argparse.Namespace, *, precision: str | None = None, **limits: Any) -> Engine:
    """Loads the engine the arguments describe.

    Args:
        args: with what `add_checkpoint` and `add_engine` add, and, without `precision`, `add_precision`.
        precision: a key of `PRECISIONS` that takes the arguments' place.
        limits: ``max_batch`` and the like.
    """
    from onerec_engine.engine import Engine

    if precision is not None:
        chosen = PRECISIONS[precision]
    else:
        quantization = None if args.quantization == "none" else args.quantization
        chosen = {"precision": args.precision, "quantization": quantization}
    path = checkpoint_path(args)
    with waiting(f"loading {path}"):
        return Engine.from_checkpoint(path, device=args.device, threads=args.threads, **chosen, **limits)
