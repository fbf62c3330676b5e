"""``onerec-engine quantize``: FP8 weights written once instead of made at every load."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from onerec_engine.cli import options
from onerec_engine.cli.failure import UsageError
from onerec_engine.cli.output import byte_text
from onerec_engine.cli.progress import bar

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("destination", metavar="DESTINATION", help="directory to write; must not exist or be empty")
    options.add_checkpoint(parser)
    parser.add_argument(
        "--scheme",
        choices=("fp8", "fp8_channel"),
        default="fp8",
        help="fp8: the paper's scheme; fp8_channel: routed experts per channel as well (default: fp8)",
    )


def run(args: argparse.Namespace) -> int:
    """Quantises and prints the sizes before and after."""
    from onerec_engine.quant import quantize_checkpoint

    source, destination = options.checkpoint_path(args), Path(args.destination)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise UsageError(f"[quantize] {destination} exists and is not an empty directory. Name another.")
    with bar(0, "quantising", "tensors") as shown:

        def progress(done: int, total: int, *_: Any) -> None:
            shown.total = total
            shown.update(done - shown.n)

        quantize_checkpoint(source, destination, scheme=args.scheme, progress=progress)
    before, after = _weight_bytes(source), _weight_bytes(destination)
    print(f"{destination}: weights {byte_text(before)} -> {byte_text(after)}, scheme {args.scheme}")
    return 0


def _weight_bytes(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.glob("*.safetensors") if not file.name.startswith("catalogue"))
