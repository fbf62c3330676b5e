"""``onerec-engine evaluate``: recall and NDCG by full ranking, leave-one-out."""

from __future__ import annotations

import argparse
import time

from onerec_engine.cli import options
from onerec_engine.cli.output import say, table, write_json
from onerec_engine.cli.progress import bar
from onerec_engine.evaluation import CUTOFFS, metrics, rank_users, sample_users

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    options.add_checkpoint(parser)
    parser.add_argument(
        "--data", metavar="FILE.npz", required=True, help="interactions: arrays items [n] and offsets [users + 1]"
    )
    parser.add_argument(
        "--split", choices=("test", "valid"), default="test", help="hold out the last item or the one before it"
    )
    parser.add_argument("--users", type=options.positive, metavar="N", help="a seeded sample of N users (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: 0)")
    parser.add_argument(
        "--beam-width", type=options.beam_width, default=64, metavar="N", help="or one per level: N,N,N"
    )
    parser.add_argument("--batch-size", type=options.positive, default=64, metavar="N", help="users per call")
    options.add_precision(parser)
    options.add_engine(parser)
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluates and prints."""
    split = options.load_interactions(args.data).split(args.split)
    users = sample_users(len(split), args.users, args.seed)
    widest = options.widest(args.beam_width)
    with options.open_engine(args, max_batch=args.batch_size, max_beam_width=widest) as engine:
        started = time.perf_counter()
        with bar(users.size, "evaluating", "users") as shown:
            found = rank_users(
                engine,
                split,
                users,
                beam_width=args.beam_width,
                num_results=min(max(CUTOFFS), options.kept(args.beam_width)),
                batch_size=args.batch_size,
                progress=shown.update,
            )
        seconds = time.perf_counter() - started
        precision = engine.precision
    result = metrics(found.ranks)
    report = result | {
        "users": int(users.size),
        "seconds": seconds,
        "users_in_split": len(split),
        "split": args.split,
        "seed": args.seed,
        "beam_width": args.beam_width,
        "precision": precision,
        "quantization": args.quantization,
        "checkpoint": str(options.checkpoint_path(args)),
    }
    rows = [(f"recall@{k}", f"{result[f'recall@{k}']:.4f}", f"ndcg@{k}", f"{result[f'ndcg@{k}']:.4f}") for k in CUTOFFS]
    say(table(["metric", "value", "metric", "value"], rows, "<><>"), args.json)
    per_user = 1e3 * seconds / max(1, users.size)
    say(f"{users.size} of {len(split)} users, {args.split} split, {precision}, beam width {args.beam_width}", args.json)
    say(f"{seconds:.1f} s, {per_user:.2f} ms per user", args.json)
    write_json(args.json, report)
    return 0
