"""``onerec-engine recommend``: histories in, ranked items out."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from onerec_engine.cli import options
from onerec_engine.cli.failure import UsageError
from onerec_engine.cli.progress import bar
from onerec_engine.cli.requests import Numbered, read_requests

if TYPE_CHECKING:
    from onerec_engine.engine import Engine
    from onerec_engine.result import Result

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "file",
        nargs="?",
        metavar="FILE.jsonl",
        help="requests, one JSON object a line: history and optionally id, features, exclude, exclude_history, "
        "beam_width, num_results, constrained; - or nothing: standard input",
    )
    parser.add_argument(
        "--history",
        action="append",
        type=options.integers,
        metavar="ID,ID,...",
        help="a history, oldest item first; may be given several times, instead of a file",
    )
    options.add_checkpoint(parser)
    parser.add_argument(
        "--beam-width",
        type=options.beam_width,
        metavar="N",
        help="or one per level: N,N,N (default: the checkpoint's, or 64)",
    )
    parser.add_argument(
        "--num-results", type=options.positive, metavar="N", help="items per request (default: the checkpoint's, or 10)"
    )
    parser.add_argument("--unconstrained", action="store_true", help="search beyond the catalogue's items")
    parser.add_argument("--exclude-history", action="store_true", help="do not recommend a history's own items")
    parser.add_argument("--batch-size", type=options.positive, default=16, metavar="N", help="requests per call")
    parser.add_argument(
        "--max-beam-width",
        type=options.positive,
        default=1024,
        metavar="N",
        help="the widest beam a line may ask for (default: 1024)",
    )
    options.add_precision(parser)
    options.add_engine(parser)


def run(args: argparse.Namespace) -> int:
    """Streams requests through the engine in batches, in order."""
    if args.history is not None and args.file is not None:
        raise UsageError("[arguments] got both --history and a file, want one of them.")
    if args.history is None and args.file in (None, "-") and sys.stdin.isatty():
        raise UsageError("[arguments] got no requests. Name a file, give --history, or pipe JSON lines in.")
    widest = max(args.max_beam_width, options.widest(args.beam_width or 1))
    with options.open_engine(args, max_batch=args.batch_size, max_beam_width=widest) as engine:
        if args.history is not None:
            _serve(engine, args, _from_arguments(args.history), len(args.history))
        elif args.file in (None, "-"):
            _serve(engine, args, read_requests(sys.stdin), 0)
        else:
            with open(args.file, encoding="utf-8") as lines:
                _serve(engine, args, read_requests(lines), 0)
    return 0


def _from_arguments(histories: Iterable[list[int]]) -> Iterator[Numbered]:
    from onerec_engine.request import Request

    for number, history in enumerate(histories, 1):
        yield Numbered(f"history {number}", None, Request(history=history))


def _serve(engine: Engine, args: argparse.Namespace, requests: Iterator[Numbered], total: int) -> None:
    # Lines before a bad one are answered before it is reported.
    with bar(total, "recommending", "requests", disable=sys.stdout.isatty()) as shown:
        while True:
            batch: list[Numbered] = []
            failure: UsageError | None = None
            try:
                for numbered in itertools.islice(requests, args.batch_size):
                    batch.append(numbered)
            except UsageError as error:
                failure = error
            if batch:
                _answer(engine, args, batch)
                shown.update(len(batch))
            if failure is not None:
                raise failure
            if not batch:
                return


def _answer(engine: Engine, args: argparse.Namespace, batch: list[Numbered]) -> None:
    try:
        results = list(_generate(engine, args, batch))
    except ValueError as error:
        if len(batch) == 1:
            raise UsageError(f"[input] {batch[0].where}: {error}") from None
        # Something in the batch is wrong; alone, each request says for itself whether it is the one.
        for numbered in batch:
            _answer(engine, args, [numbered])
        return
    for numbered, result in zip(batch, results, strict=True):
        sys.stdout.write(json.dumps(_line(numbered, result)) + "\n")
    sys.stdout.flush()


def _generate(engine: Engine, args: argparse.Namespace, batch: list[Numbered]) -> Iterable[Result]:
    return engine.generate(
        [numbered.request for numbered in batch],
        beam_width=args.beam_width,
        num_results=args.num_results,
        constrained=not args.unconstrained,
        exclude_history=args.exclude_history,
    )


def _line(numbered: Numbered, result: Result) -> dict[str, Any]:
    named = {} if numbered.id is None else {"id": numbered.id}
    return named | {
        # An unconstrained search also finds semantic ids that no item has.
        "items": [item if legal else None for item, legal in zip(result.items.tolist(), result.legal, strict=True)],
        "semantic_ids": result.semantic_ids.tolist(),
        "logprobs": result.logprobs.tolist(),
        "unknown_history": result.unknown_history,
    }
