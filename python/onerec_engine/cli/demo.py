"""``onerec-engine demo``: real user histories, the ten best items each, in FP32 and FP8 side by side."""

from __future__ import annotations

import argparse
import statistics
import textwrap
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onerec_engine.cli import options
from onerec_engine.cli.failure import CommandError
from onerec_engine.cli.machine import describe, machine
from onerec_engine.cli.output import count_text
from onerec_engine.cli.progress import bar
from onerec_engine.cli.requests import Numbered, read_examples

if TYPE_CHECKING:
    from onerec_engine.engine import Engine

__all__ = ["add_arguments", "run"]

_WIDTH = 100
_TOP = 10
_REPEATS = 5
_COLUMN = 44
_GAP = " " * 4


@dataclass(frozen=True, slots=True)
class _Answer:
    """One request's ranking and the time it took.

    Attributes:
        items: best first.
        codes: the items' semantic ids as text.
        logprobs: the items' scores.
        milliseconds: median of a few repetitions.
    """

    items: list[int]
    codes: list[str]
    logprobs: list[float]
    milliseconds: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    options.add_checkpoint(parser)
    parser.add_argument("--users", type=options.positive, default=5, metavar="N", help="histories to show (default: 5)")
    parser.add_argument(
        "--beam-width", type=options.beam_width, default=64, metavar="N", help="or one per level: N,N,N"
    )
    options.add_engine(parser)


def run(args: argparse.Namespace) -> int:
    """Prints a page per user and a summary."""
    examples = read_examples(options.checkpoint_path(args))[: args.users]
    if not examples:
        raise CommandError(
            "[demo] the checkpoint has no example_requests.jsonl. Use 'onerec-engine recommend' with it."
        )
    answers: dict[str, list[_Answer]] = {}
    for precision in ("fp32", "fp8"):
        limits = {"max_batch": 1, "max_beam_width": options.widest(args.beam_width)}
        with (
            options.open_engine(args, precision=precision, **limits) as engine,
            bar(len(examples), precision.upper(), "users") as shown,
        ):
            answers[precision] = []
            for example in examples:
                answers[precision].append(_ask(engine, example, args.beam_width))
                shown.update()
            title, device = _title(engine), engine.device
    print(_wrapped(title, describe(machine())))
    print(
        _wrapped(
            f"Beam search of width {args.beam_width} over the catalogue, without a user's own items. Times are medians "
            f"of {_REPEATS} calls. Between the lists: = the same place, ~ another place.\n"
        )
    )
    pairs = list(zip(answers["fp32"], answers["fp8"], strict=True))
    for number, (example, (fp32, fp8)) in enumerate(zip(examples, pairs, strict=True), 1):
        print(f"{_page(f'User {number} of {len(examples)}', example, fp32, fp8)}\n")
    print(_wrapped(*_summary(pairs, device)))
    return 0


def _ask(engine: Engine, example: Numbered, beam_width: int | list[int]) -> _Answer:
    times = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        found = engine.generate([example.request], beam_width=beam_width, num_results=_TOP, exclude_history=True)[0]
        times.append(time.perf_counter() - started)
    codes = ["<" + ", ".join(f"{code:3d}" for code in row) + ">" for row in found.semantic_ids.tolist()]
    return _Answer(found.items.tolist(), codes, found.logprobs.tolist(), 1e3 * statistics.median(times))


def _title(engine: Engine) -> str:
    config = engine.config
    sizes = " x ".join(map(str, config.codebook_sizes))
    kind = "mixture of experts" if config.n_routed_experts else "dense"
    return (
        f"OneRec-V2, {kind}, {config.num_hidden_layers} layers of width {config.hidden_size}; "
        f"{count_text(len(engine.catalogue))} items, codebooks {sizes}"
    )


def _page(title: str, example: Numbered, fp32: _Answer, fp8: _Answer) -> str:
    history = [int(item) for item in np.asarray(example.request.history)]
    newest = history[-10:]
    while len(_history(title, history, newest)) > _WIDTH and len(newest) > 1:
        newest = newest[1:]
    lines = [_history(title, history, newest)]
    rule = [
        f" {name}, {answer.milliseconds:.1f} ms ".center(_COLUMN, "-")
        for name, answer in (("FP32", fp32), ("FP8", fp8))
    ]
    head = f"{'item':>8}  {'semantic id':<17}{'log-probability':>17}"
    lines += [f"      {rule[0]}{_GAP}{rule[1]}", f"   #  {head}{_GAP}{head}"]
    for i in range(max(len(fp32.items), len(fp8.items))):
        lines.append(f"  {i + 1:2d}  {_cell(fp32, i)} {_mark(fp32, fp8, i)}  {_cell(fp8, i)}".rstrip())
    agree = len(set(fp32.items) & set(fp8.items))
    verdict = f"{agree} of the {len(fp32.items)} agree."
    if example.target is not None:
        places = f"{_place(fp32, example.target)} in FP32, {_place(fp8, example.target)} in FP8"
        verdict += f" The item chosen next, {example.target}: {places}."
    return "\n".join([*lines, f"      {verdict}"])


def _history(title: str, history: list[int], newest: list[int]) -> str:
    rest = "..., " if len(newest) < len(history) else ""
    return f"{title}: {len(history)} items, the newest last: {rest}{', '.join(map(str, newest))}"


def _cell(answer: _Answer, i: int) -> str:
    if i >= len(answer.items):
        return " " * _COLUMN
    return f"{answer.items[i]:>8}  {answer.codes[i]:<17}{answer.logprobs[i]:>17.4f}"


def _mark(fp32: _Answer, fp8: _Answer, i: int) -> str:
    """Where the FP8 item of this line stands in the FP32 list."""
    if i >= len(fp8.items):
        return " "
    if i < len(fp32.items) and fp32.items[i] == fp8.items[i]:
        return "="
    return "~" if fp8.items[i] in fp32.items else " "


def _place(answer: _Answer, item: int) -> str:
    return f"no. {answer.items.index(item) + 1}" if item in answer.items else "absent"


def _wrapped(*paragraphs: str) -> str:
    return "\n".join(
        textwrap.fill(paragraph, _WIDTH) + ("\n" if paragraph.endswith("\n") else "") for paragraph in paragraphs
    )


def _summary(pairs: list[tuple[_Answer, _Answer]], device: str) -> list[str]:
    shown = sum(len(fp32.items) for fp32, _ in pairs)
    agree, gaps = 0, []
    for fp32, fp8 in pairs:
        other = dict(zip(fp8.items, fp8.logprobs, strict=True))
        common = [(a, other[item]) for item, a in zip(fp32.items, fp32.logprobs, strict=True) if item in other]
        agree += len(common)
        gaps += [abs(a - b) for a, b in common]
    times = [statistics.median(pair[i].milliseconds for pair in pairs) for i in (0, 1)]
    gap = statistics.fmean(gaps) if gaps else 0.0
    lines = [
        f"All users: {agree} of {shown} items agree; their log-probabilities differ by {gap:.4f} on average.",
        f"Median time of a request: FP32 {times[0]:.1f} ms, FP8 {times[1]:.1f} ms.",
    ]
    if device == "cpu":
        lines.append(
            "FP8 on a CPU shows accuracy, not speed: a CPU does not multiply FP8, so values are rounded as on a GPU "
            "and then multiplied in a wider type."
        )
    return lines
