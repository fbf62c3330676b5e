"""The GPU half of bench_engine.py: whole generations of the report's sizes against PyTorch in BF16.

Random weights, the same for everybody. Times are those of a caller with a clock, from the request to the answer in host
memory: `generate` is Engine.generate from item ids to items, `core` the engine's run of a prepared batch, PyTorch's the
same from codes on the device to codes and scores on the host. The answers are compared in the same run.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contestants.torch_search import GraphSearch, TorchOneRec
from gpu_facts import clocks, gpu_facts
from op_bench.ceilings import warm_up
from random_model import RandomEngine, RandomWeights, core_batch, random_items
from ranges import annotate
from roofline import least_milliseconds, read_ceilings
from sizes import sized_config
from torch import Tensor
from verdicts import Verdict, agreement

from onerec_engine.cli.output import table
from onerec_engine.reference.trie import Trie

__all__ = ["ROWS", "Row", "core_answers", "run", "torch_answers"]

# Mean differences of log-probability that rounding explains: of random weights, by precision. Where two experts score
# nearly the same, rounding decides between them, and a random router knows no other case.
MEANS = {("bf16", False): 0.05, ("bf16", True): 0.25, ("fp8", False): 0.5, ("fp8", True): 0.5}
OVERLAPS = {"bf16": 0.6, "fp8": 0.3}
# At least so many requests are compared, in several batches if need be: of one alone, a router's single tie decides.
COMPARED = 8
# So long a contestant is asked again and again before it is the next one's turn.
TURN_SECONDS = 0.03

Answers = list[dict[str, Any]]
Call = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """A model at a batch size and a context."""

    model: str
    batch: int
    context: int

    @property
    def name(self) -> str:
        return f"{self.model}, batch {self.batch}, context {self.context}"


ROWS = (
    Row("MoE 4B-A0.5B", 32, 512),
    Row("MoE 4B-A0.5B", 1, 512),
    Row("1B", 1, 3000),
    Row("1B", 32, 512),
    Row("1B", 32, 3000),
    Row("0.1B", 1, 512),
)


@dataclass
class Lap:
    """One contestant at one row: milliseconds of the calls that count."""

    name: str
    call: Call
    rounds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)


def run(args: argparse.Namespace) -> int:
    """Measures the chosen rows and prints a table and the outcomes."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = [row for row in (args.gpu_rows or ROWS) if not args.models or row.model in args.models]
    precisions = args.precisions or ["bf16", "fp8"]
    torch.manual_seed(0)
    report: dict[str, Any] = {
        "facts": gpu_facts(args.commit, 0),
        "width": args.width,
        "rounds": args.rounds,
        "runs": [],
    }
    warm_up(device, 8192, 1.0)
    ceilings, source = read_ceilings(None)
    lines: list[list[str]] = []
    outcomes: list[Verdict] = []
    for model in dict.fromkeys(row.model for row in rows):
        mine = [row for row in rows if row.model == model]
        with _Loaded(args, model, mine, precisions, device) as loaded:
            for row in mine:
                for constrained in [False, True] if args.constrained else [False]:
                    laps, judged = loaded.compete(row, constrained)
                    outcomes += judged
                    found: dict[str, Any] = {"row": row.name, **asdict(row), "constrained": constrained, "laps": {}}
                    for lap in laps:
                        floor = loaded.floor(row, lap.name, ceilings)
                        lines.append(_line(row, constrained, lap, laps, floor))
                        found["laps"][lap.name] = {
                            "ms_median": lap.median,
                            "ms_min": min(lap.rounds),
                            "rounds": lap.rounds,
                            "requests_per_second": 1e3 * row.batch / lap.median,
                        }
                    report["runs"].append(found)
    report["clocks_at_end"] = clocks()
    report["outcomes"] = [outcome.to_dict() for outcome in outcomes]
    headers = ["row", "search", "by", "ms median", "min", "requests/s", "floor ms", "graph / this"]
    print(f"\nbeam width {args.width}; floors: {source}\n" + table(headers, lines, "<<<>>>>>"))
    print("\n" + table(["what", "target", "got", "outcome"], [(o.what, o.target, o.got, o.outcome) for o in outcomes]))
    if args.json:
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 1 if any(outcome.met is False for outcome in outcomes) else 0


def _line(row: Row, constrained: bool, lap: Lap, laps: Sequence[Lap], floor: float | None) -> list[str]:
    rivals = [other.median for other in laps if other.name == "PyTorch, CUDA graph"]
    return [
        row.name,
        "items" if constrained else "free",
        lap.name,
        f"{lap.median:.2f}",
        f"{min(lap.rounds):.2f}",
        f"{1e3 * row.batch / lap.median:.1f}",
        "" if floor is None else f"{floor:.2f}",
        f"{rivals[0] / lap.median:.2f}x" if rivals else "",
    ]


class _Loaded:
    """A model with everybody who runs it, for some rows."""

    def __init__(
        self, args: argparse.Namespace, model: str, rows: Sequence[Row], precisions: Sequence[str], device: str
    ) -> None:
        self.args, self.device = args, device
        self.config = sized_config(model, max(row.context for row in rows), args.codebook)
        weights = RandomWeights(self.config, device)
        most = max(row.batch for row in rows)
        self.engines: dict[str, RandomEngine] = {}
        for precision in precisions:
            started = time.perf_counter()
            self.engines[precision] = RandomEngine.load(
                weights, precision, device, requests=most, beams=args.width, items=args.items
            )
            print(f"{model} {precision}: loaded in {time.perf_counter() - started:.1f} s", flush=True)
        catalogue = next(iter(self.engines.values())).engine.catalogue
        self.codes = catalogue.semantic_ids
        self.torch = TorchOneRec(self.config, weights)
        self.trie: Trie | None = None
        if args.constrained:
            self.trie = Trie.build(catalogue.item_ids.copy(), self.codes, device)

    def __enter__(self) -> _Loaded:
        return self

    def __exit__(self, *_: object) -> None:
        for loaded in self.engines.values():
            loaded.engine.close()
        del self.torch
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def floor(self, row: Row, contestant: str, ceilings: dict[str, float]) -> float | None:
        """Milliseconds of the roofline, of our own runs."""
        precision = contestant.split(" ")[-1]
        if precision not in ("bf16", "fp8"):
            return None
        return least_milliseconds(self.config, row.batch, self.args.width, row.context, precision, ceilings)

    def compete(self, row: Row, constrained: bool) -> tuple[list[Lap], list[Verdict]]:
        """Times everybody in turns, after two rounds that are not counted, and compares their answers.

        Every round has an order of its own: who comes behind a call that leaves the chip hot finds a lower clock than
        who comes behind one that waits for the host. Short calls are made several times in a turn.
        """
        width, levels = self.args.width, self.config.levels
        engines = self.engines.values()
        catalogue = next(iter(engines)).engine.catalogue
        items = random_items(catalogue, row.batch, row.context)
        history = self.codes[items]
        batch = core_batch(self.config, history, [width] * levels, constrained=constrained)
        requests = {"item_ids": items.flatten(), "offsets": np.arange(row.batch + 1, dtype=np.int64) * row.context}
        on_device = torch.from_numpy(history.astype(np.int64)).to(self.device)
        self.torch.trie = self.trie if constrained else None
        if self.device == "cuda":
            torch.cuda.empty_cache()  # the engines allocate beside torch
        laps = []
        for precision, loaded in self.engines.items():
            laps.append(Lap(f"core {precision}", lambda core=loaded.core: core.run(batch)))  # type: ignore[misc]
            laps.append(
                Lap(
                    f"generate {precision}",
                    lambda engine=loaded.engine: engine.generate(  # type: ignore[misc]
                        requests, beam_width=width, num_results=min(width, 10), constrained=constrained
                    ),
                )
            )
        widths = [width] * levels
        laps.append(Lap("PyTorch, eager", lambda: _on_host(self.torch.search(on_device, widths))))
        if self.device == "cuda":
            graph = GraphSearch(self.torch, on_device, widths)
            laps.append(Lap("PyTorch, CUDA graph", lambda: _on_host(graph.search(on_device))))
        shuffle = random.Random(0)
        for turn in range(self.args.rounds + 2):
            for lap in shuffle.sample(laps, len(laps)):
                with annotate(f"{row.name}: {lap.name}"):
                    found = _turn(lap.call)
                if turn > 1:
                    lap.rounds += found
        reference: Answers = []
        answers: dict[tuple[str, str], Answers] = {}
        for seed in range(-(-COMPARED // row.batch)):
            history = self.codes[random_items(catalogue, row.batch, row.context, seed)]
            batch = core_batch(self.config, history, widths, constrained=constrained)
            on_device = torch.from_numpy(history.astype(np.int64)).to(self.device)
            reference += torch_answers(*_on_host(self.torch.search(on_device, widths)))
            for precision, loaded in self.engines.items():
                found = core_answers(loaded.core.run(batch))
                answers.setdefault((f"core {precision}", precision), []).extend(found)
            if self.device == "cuda":
                found = torch_answers(*_on_host(graph.search(on_device)))
                answers.setdefault(("PyTorch, CUDA graph", "bf16"), []).extend(found)
        what = row.name + (", items" if constrained else "")
        mixture = self.config.n_routed_experts > 0
        outcomes = [
            _judge(f"{what}, {name}", precision, mixture, found, reference)
            for (name, precision), found in answers.items()
        ]
        return laps, outcomes


def _turn(call: Call) -> list[float]:
    """Milliseconds of a call; if a turn holds several, of all but the first, which finds the caches of others."""
    found: list[float] = []
    ends = time.perf_counter() + TURN_SECONDS
    while not found or time.perf_counter() < ends:
        started = time.perf_counter()
        call()
        found.append(1e3 * (time.perf_counter() - started))
    return found[1:] or found


def _judge(what: str, precision: str, mixture: bool, ours: Answers, reference: Answers) -> Verdict:
    found = agreement(ours, reference)
    mean, overlap = MEANS[precision, mixture], OVERLAPS[precision]
    return Verdict(
        f"{what}: {len(reference[0]['codes'])} beams as PyTorch's",
        f">= {overlap:.0%} shared, mean {mean:g}",
        f"{found.overlap:.1%} shared, log p differs by {found.largest:.1e} (mean {found.mean:.1e})",
        found.overlap >= overlap and found.mean <= mean,
    )


def _on_host(found: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return found[0].cpu(), found[1].cpu()


def torch_answers(codes: Tensor, scores: Tensor) -> Answers:
    return [{"codes": c.tolist(), "logprobs": s.tolist()} for c, s in zip(codes, scores, strict=True)]


def core_answers(result: dict[str, Any]) -> Answers:
    """The beams that are alive; a failed search has none."""
    if result["status"].any():
        return [{"codes": [], "logprobs": []} for _ in result["status"]]
    cuts = result["offsets"][1:-1]
    return [
        {"codes": codes.tolist(), "logprobs": scores.tolist()}
        for codes, scores in zip(np.split(result["codes"], cuts), np.split(result["scores"], cuts), strict=True)
    ]
