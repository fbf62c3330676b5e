"""Evaluates every precision over all test users, compares them user by user, and writes docs/accuracy.md.

    python profiling/accuracy.py --data beauty.npz
    python profiling/accuracy.py --data beauty.npz --device cuda

The page shows the figures of both devices, each compared with FP32 on the same device.

Answers are kept in the cache folder, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from accuracy_report import compare, page
from accuracy_runs import Run, Setting, check_targets, run_all
from gpu_facts import gpu_facts

from onerec_engine import build_info
from onerec_engine.assets import beauty_checkpoint
from onerec_engine.cli.machine import machine
from onerec_engine.cli.options import checkpoint_path, positive
from onerec_engine.config import OneRecV2Config, load_config
from onerec_engine.evaluation import Interactions, sample_users

ROOT = Path(__file__).resolve().parent.parent
FIGURES = {"cpu": "accuracy.json", "cuda": "accuracy_cuda.json"}
DENSE = ("fp32", "bf16", "fp8")
MOE = ("fp32", "bf16", "fp8", "fp8_channel")


def main() -> int:
    args = _arguments()
    results = Path(args.results)
    if not args.page_only:
        _write(results / FIGURES[args.device], json.dumps(_evaluate(args), indent=2) + "\n")
    found = {device: results / name for device, name in FIGURES.items() if (results / name).is_file()}
    text = page({device: json.loads(file.read_text(encoding="utf-8")) for device, file in found.items()})
    _write(Path(args.page), text)
    print(text)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", help="interactions (.npz)")
    what.add_argument(
        "--page-only", action="store_true", help="write the page again from the figures, evaluate nothing"
    )
    parser.add_argument("--checkpoint", help="the dense model (default: the bundled one)")
    parser.add_argument("--moe-checkpoint", help="a mixture of experts (default: the bundled one)")
    parser.add_argument("--users", type=int, help="a seeded sample of users (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--beam-width", type=int, default=64, help="at least 50 (default: 64)")
    parser.add_argument("--batch-size", type=int, default=64, help="users per call")
    parser.add_argument("--device", choices=list(FIGURES), default="cpu", help="what answers (default: cpu)")
    parser.add_argument(
        "--jobs", type=positive, help="processes, each with one thread (default: one per core, at most 8 on a GPU)"
    )
    parser.add_argument("--commit", help="the commit that is measured (default: the checkout's)")
    parser.add_argument("--cache", default=str(ROOT / "build/accuracy"), help="where answers are kept")
    parser.add_argument("--page", default=str(ROOT / "docs/accuracy.md"), help="the page to write")
    parser.add_argument("--results", default=str(ROOT / "profiling/results"), help="the figures' folder")
    args = parser.parse_args()
    if args.beam_width < 50:
        parser.error("the beam sets are compared at 50: want --beam-width of at least 50")
    return args


def _evaluate(args: argparse.Namespace) -> dict[str, Any]:
    split = Interactions.load(args.data).split("test")
    users = sample_users(len(split), args.users, args.seed)
    models = [
        ("Dense model", checkpoint_path(args), DENSE),
        ("Mixture of experts", Path(args.moe_checkpoint or beauty_checkpoint().with_name("beauty_moe")), MOE),
    ]
    settings = [
        Setting(
            checkpoint,
            Path(args.data),
            Path(args.cache),
            split,
            users,
            args.beam_width,
            args.batch_size,
            precisions,
            args.device,
        )
        for _, checkpoint, precisions in models
    ]
    facts = machine()
    cores = facts["usable_cores"] or os.cpu_count() or 1
    answered = run_all(settings, args.jobs or (cores if args.device == "cpu" else min(cores, 8)))
    on_gpu = args.device == "cuda"
    return {
        "command": "python profiling/accuracy.py --data beauty.npz" + (" --device cuda" if on_gpu else ""),
        "gpu": gpu_facts(args.commit, 0) if on_gpu else None,
        "machine": {name: facts[name] for name in ("cpu", "vendor", "architecture", "isa", "usable_cores")},
        "build": build_info(),
        "users": int(users.size),
        "of_users": len(split),
        "items": int(split.items.max()) + 1,
        "interactions": int(split.items.size),
        "beam_width": args.beam_width,
        "models": [
            _compared(title, setting, runs)
            for (title, *_), setting, runs in zip(models, settings, answered, strict=True)
        ],
    }


def _compared(title: str, setting: Setting, runs: list[Run]) -> dict[str, Any]:
    return {
        "title": title,
        "description": _describe(load_config(setting.checkpoint), setting),
        "results": [compare(run, runs[0]) for run in runs],
    }


def _describe(config: OneRecV2Config, setting: Setting) -> str:
    from onerec_engine.catalogue import Catalogue
    from onerec_engine.weights import expected_tensors

    catalogue = Catalogue.load(setting.checkpoint, codebook_sizes=config.codebook_sizes)
    parameters = sum(int(np.prod(spec.shape)) for spec in expected_tensors(config))
    text = (
        f"{parameters / 1e6:.2f} M parameters, {config.num_hidden_layers} layers of width {config.hidden_size}, "
        f"{len(catalogue):,} items of {config.levels} codes."
    )
    if config.n_routed_experts:
        text += (
            f" {config.n_routed_experts} routed experts and {config.n_shared_experts} shared, "
            f"{config.num_experts_per_tok} per token, from layer {config.first_k_dense_replace} on. "
            "FP8 quantises the experts' activations per 1 x 128 and their weights per 128 x 128."
        )
    unknown = check_targets(setting.split, setting.users, catalogue)
    return text + (f" {unknown} users' targets are not in the catalogue." if unknown else "")


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
