"""Runs one generation of a random model, for a profiler that watches from outside: nsys_generate.sh, ncu_kernel.sh.

    python profiling/one_generation.py --model 1B --batch 32 --precision fp8

The model is loaded and the search run before the profiler is told to start (cudaProfilerStart); then one search runs op
by op, so that every kernel lies in its op's NVTX range, or with `--replay` from the recorded CUDA graph.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from random_model import Arrays, RandomEngine, RandomWeights, core_batch, random_items
from ranges import annotate
from sizes import SIZES, sized_config

__all__ = ["Generation", "add_arguments", "loaded"]

cuda: Any = torch.cuda


@dataclass(frozen=True)
class Generation:
    """A loaded model and a batch for it."""

    loaded: RandomEngine
    batch: Arrays
    name: str

    def run(self, *, replay: bool) -> None:
        """One search, from the plan's recording or op by op."""
        core = self.loaded.core
        with annotate(self.name):
            core.run(self.batch) if replay else core.run_directly(self.batch)


@contextmanager
def loaded(args: argparse.Namespace) -> Iterator[Generation]:
    """The model that the arguments name; its plan has been recorded and run once."""
    device = args.device
    config = sized_config(args.model, args.context, args.codebook)
    engine = RandomEngine.load(
        RandomWeights(config, "cuda" if torch.cuda.is_available() else "cpu"),
        args.precision,
        device,
        requests=args.batch,
        beams=args.width,
        items=args.items,
    )
    with engine.engine as opened:
        codes = opened.catalogue.semantic_ids[random_items(opened.catalogue, args.batch, args.context)]
        batch = core_batch(config, codes, [args.width] * config.levels, constrained=args.constrained)
        name = f"{args.model} {args.precision}, batch {args.batch}, width {args.width}, context {args.context}"
        generation = Generation(engine, batch, name)
        generation.run(replay=True)
        yield generation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is generated."""
    parser.add_argument("--model", default="1B", choices=SIZES, help="a size of the report (default: 1B)")
    parser.add_argument("--batch", type=int, default=1, help="requests (default: 1)")
    parser.add_argument("--width", type=int, default=512, help="beams kept after each level (default: 512)")
    parser.add_argument("--context", type=int, default=512, help="tokens of a request (default: 512)")
    parser.add_argument("--precision", default="fp8", choices=["fp32", "bf16", "fp8"], help="(default: fp8)")
    parser.add_argument("--constrained", action="store_true", help="search the items of a random catalogue")
    parser.add_argument("--items", type=int, default=200_000, help="of that catalogue (default: 200000)")
    parser.add_argument("--codebook", type=int, default=8192, help="codes of a level (default: 8192)")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu tries the script out")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--replay", action="store_true", help="from the CUDA graph instead of op by op")
    args = parser.parse_args()
    with loaded(args) as generation:
        generation.run(replay=args.replay)
        profiled = args.device == "cuda"
        if profiled:
            cuda.synchronize()
            cuda.cudart().cudaProfilerStart()
        generation.run(replay=args.replay)
        if profiled:
            cuda.synchronize()
            cuda.cudart().cudaProfilerStop()
    print(generation.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
