"""What each step from eager PyTorch to the whole engine is worth, on one model at one batch size, in one run.

    python profiling/ladder.py --model "MoE 4B-A0.5B" --batch 32 --context 512

The rungs of "Quantized Inference for OneRec-V2", on this engine: every rung adds to the one before it.

* PyTorch, eager, in BF16; PyTorch in a CUDA graph.
* ours, BF16: this engine issuing op by op, each op in kernels of its own.
* + FP8: the linears' weights and activations quantised; quantisation is in the kernels that make the activations.
* + fused operators: kernels that do several ops at once, such as SwiGLU inside products and norms inside small ones.
* + graph: the whole search is one recorded CUDA graph.
* + overlap: in the graph, a kernel starts while the one before it ends (programmatic dependent launch).

Random weights; times are those of a caller with a clock, from a prepared batch to the answer in host memory. The
answers of every rung are compared with those of the rung before it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench_engine_gpu import core_answers, torch_answers
from contestants.torch_search import GraphSearch, TorchOneRec
from gpu_facts import clocks, gpu_facts
from random_model import RandomEngine, RandomWeights, core_batch, random_items
from sizes import sized_config
from verdicts import Verdict, agreement

from onerec_engine.cli.output import table

__all__ = ["main"]

# (rung, precision, engine options, whether the recording is run)
RUNGS: tuple[tuple[str, str, dict[str, bool], bool], ...] = (
    ("ours, BF16", "bf16", {"fused": False, "overlapped": False}, False),
    ("+ FP8", "fp8", {"fused": False, "overlapped": False}, False),
    ("+ fused operators", "fp8", {"fused": True, "overlapped": False}, False),
    ("+ graph", "fp8", {"fused": True, "overlapped": False}, True),
    ("+ overlap", "fp8", {"fused": True, "overlapped": True}, True),
)
# Shares of beams and mean differences of log-probability that rounding explains, of random weights.
FP8_OVERLAP, FP8_MEAN = 0.3, 0.5
SAME_OVERLAP, SAME_MEAN = 0.6, 0.25


def main() -> int:
    args = _arguments()
    torch.manual_seed(0)
    report: dict[str, Any] = {
        "facts": gpu_facts(args.commit, 0),
        "model": args.model,
        "batch": args.batch,
        "context": args.context,
        "width": args.width,
        "rungs": [],
    }
    config = sized_config(args.model, args.context)
    weights = RandomWeights(config, "cuda")
    outcomes: list[Verdict] = []
    before: tuple[str, list[dict[str, Any]]] | None = None
    for name, precision, options, recorded in RUNGS:
        loaded = RandomEngine.load(
            weights, precision, "cuda", requests=args.batch, beams=args.width, items=args.items, **options
        )
        items = random_items(loaded.engine.catalogue, args.batch, args.context)
        codes = loaded.engine.catalogue.semantic_ids
        batch = core_batch(config, codes[items], [args.width] * config.levels, constrained=False)
        core = loaded.core
        run = partial(core.run if recorded else core.run_directly, batch)
        report["rungs"].append({"name": name} | _timed(run, args.rounds))
        answers = core_answers(run())
        if before is not None:
            outcomes.append(_judge(name, answers, *before, fp8=before[0] == "ours, BF16"))
        before = (name, answers)
        history = codes[items]
        loaded.engine.close()
    rival = TorchOneRec(config, weights)
    on_device = torch.from_numpy(history.astype("int64")).to("cuda")
    widths = [args.width] * config.levels
    eager = _timed(lambda: _on_host(rival.search(on_device, widths)), args.rounds)
    graph = GraphSearch(rival, on_device, widths)
    captured = _timed(lambda: _on_host(graph.search(on_device)), args.rounds)
    same = agreement(
        torch_answers(*_on_host(graph.search(on_device))), torch_answers(*_on_host(rival.search(on_device, widths)))
    )
    outcomes.append(
        Verdict(
            "PyTorch, CUDA graph: beams as eager",
            f">= {SAME_OVERLAP:.0%}",
            f"{same.overlap:.1%}",
            same.overlap >= SAME_OVERLAP,
        )
    )
    report["rungs"] = [
        {"name": "PyTorch, eager"} | eager,
        {"name": "PyTorch, CUDA graph"} | captured,
        *report["rungs"],
    ]
    report["clocks_at_end"] = clocks()
    report["outcomes"] = [outcome.to_dict() for outcome in outcomes]
    _show(report, outcomes)
    if args.json:
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 1 if any(outcome.met is False for outcome in outcomes) else 0


def _timed(call: Callable[[], Any], rounds: int) -> dict[str, Any]:
    """Milliseconds of every round, after two that are not counted."""
    found = []
    for turn in range(rounds + 2):
        started = time.perf_counter()
        call()
        if turn > 1:
            found.append(1e3 * (time.perf_counter() - started))
    return {"ms_median": statistics.median(found), "ms_min": min(found), "rounds": found}


def _judge(name: str, ours: Any, before: str, reference: Any, *, fp8: bool) -> Verdict:
    found = agreement(ours, reference)
    overlap, mean = (FP8_OVERLAP, FP8_MEAN) if fp8 else (SAME_OVERLAP, SAME_MEAN)
    return Verdict(
        f"{name}: beams as of {before}",
        f">= {overlap:.0%} shared, mean {mean:g}",
        f"{found.overlap:.1%} shared, log p differs by {found.largest:.1e} (mean {found.mean:.1e})",
        found.overlap >= overlap and found.mean <= mean,
    )


def _on_host(found: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return found[0].cpu(), found[1].cpu()


def _show(report: dict[str, Any], outcomes: list[Verdict]) -> None:
    rungs = report["rungs"]
    first = rungs[0]["ms_median"]
    rows = []
    for i, rung in enumerate(rungs):
        ms = rung["ms_median"]
        gain = f"{rungs[i - 1]['ms_median'] / ms:.2f}x" if i else ""
        rows.append((rung["name"], f"{ms:.2f}", f"{rung['ms_min']:.2f}", gain, f"{first / ms:.2f}x"))
    print(f"{report['model']}, batch {report['batch']}, context {report['context']}, width {report['width']}")
    print(table(["rung", "ms median", "min", "to the rung before", "to eager PyTorch"], rows, "<>>>>"))
    print("\n" + table(["what", "target", "got", "outcome"], [(o.what, o.target, o.got, o.outcome) for o in outcomes]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="MoE 4B-A0.5B", help="of sizes.py")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--width", type=int, default=512, help="beams at every level")
    parser.add_argument("--items", type=int, default=200_000, help="of a random catalogue")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--commit", help="the commit that is measured (default: the checkout's)")
    parser.add_argument("--json", help="where the figures go")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("found no GPU")
    return args


if __name__ == "__main__":
    sys.exit(main())
