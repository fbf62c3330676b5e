"""``onerec-engine inspect``: what a checkpoint holds, what it will take, and how its values are spread."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import Any

from onerec_engine.cli import options
from onerec_engine.cli.inputs import input_spreads
from onerec_engine.cli.output import byte_text, count_text, say, table, write_json
from onerec_engine.cli.progress import bar
from onerec_engine.cli.statistics import Spread, draw, means, spread, spread_table

__all__ = ["add_arguments", "run"]

TITLES = {"weights": "weights of linears", "tables": "embeddings and positions", "inputs": "inputs of linears"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("directory", nargs="?", metavar="DIR", help="the same as --checkpoint")
    options.add_checkpoint(parser)
    parser.add_argument("--all", action="store_true", help="list every tensor, instead of one line per kind")
    parser.add_argument("--no-statistics", action="store_true", help="do not read the weights' values")
    parser.add_argument("--data", metavar="FILE.npz", help="interactions: measure every linear's input on them as well")
    parser.add_argument("--users", type=options.positive, default=32, metavar="N", help="users of --data (default: 32)")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the statistics (needs matplotlib)")
    parser.add_argument(
        "--beam-width", type=options.beam_width, default=64, metavar="N", help="or one per level: N,N,N"
    )
    parser.add_argument("--batch-size", type=options.positive, default=16, metavar="N", help="of the memory plan")
    options.add_precision(parser)
    options.add_engine(parser)
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Reads and prints."""
    if args.directory is not None:
        args.checkpoint = args.directory
    path = options.checkpoint_path(args)
    config, tensors, spreads = _read(path, statistics=not args.no_statistics)
    report: dict[str, Any] = {
        "checkpoint": str(path),
        "config": config,
        "parameters": sum(t["parameters"] for t in tensors),
        "bytes": sum(t["bytes"] for t in tensors),
        "tensors": tensors,
    }
    say(_config_text(path, config, report), args.json)
    say("\n" + _tensor_text(tensors, every=args.all), args.json)
    spreads["inputs"] = _load(args, report)
    groups = [(name, members) for name, members in spreads.items() if members]
    report["statistics"] = {
        name: {"means": means(members), "tensors": [s.to_dict() for s in members]} for name, members in groups
    }
    for name, members in groups:
        say(f"\n{spread_table(members, TITLES[name])}", args.json)
    if args.plot is not None:
        draw(
            Path(args.plot),
            [(TITLES[name], members) for name, members in groups],
            f"{path.name}: spread of values per tensor",
        )
        say(f"\n{args.plot} written", args.json)
    write_json(args.json, report)
    return 0


def _load(args: argparse.Namespace, report: dict[str, Any]) -> list[Spread]:
    """Loads the engine for its memory plan and, with --data, the spread of its inputs."""
    limits = {"max_batch": args.batch_size, "max_beam_width": options.widest(args.beam_width)}
    inputs: list[Spread] = []
    with options.open_engine(args, **limits) as engine:
        plan = engine.memory_plan()
        if args.data is not None:
            split = options.load_interactions(args.data).split("test")
            inputs = input_spreads(engine, split, args.users, args.beam_width)
        report |= {"precision": engine.precision, "memory_plan": plan, "memory_plan_for": limits}
    title = f"memory plan, {report['precision']}, {args.batch_size} requests of beam width {args.beam_width}"
    rows = [(name.replace("_", " "), byte_text(size)) for name, size in plan.items()]
    rows.append(("total", byte_text(sum(plan.values()))))
    say(f"\n{table([title, 'size'], rows, '<>')}", args.json)
    return inputs


def _read(path: Path, *, statistics: bool) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, list[Spread]]]:
    """The configuration, the tensors with their sizes, and the spread of every matrix: of linears, and of tables."""
    from onerec_engine.checkpoint import Checkpoint
    from onerec_engine.weights import DTYPE_BYTES

    tensors: list[dict[str, Any]] = []
    spreads: dict[str, list[Spread]] = {"weights": [], "tables": []}
    with Checkpoint(path) as checkpoint:
        scales = checkpoint.scales
        with bar(len(checkpoint.specs), "reading weights", "tensors") as shown:
            for spec in checkpoint.specs:
                for one in (spec, scales.get(spec.name)):
                    if one is None:
                        continue
                    dtype, count = checkpoint.dtype(one.name), math.prod(one.shape)
                    size = count * DTYPE_BYTES[dtype]
                    parameters = count if one is spec else 0
                    tensors.append(
                        {
                            "name": one.name,
                            "shape": list(one.shape),
                            "dtype": dtype,
                            "bytes": size,
                            "parameters": parameters,
                        }
                    )
                if statistics and len(spec.shape) == 2:
                    group = "tables" if spec.kind == "table" else "weights"
                    spreads[group].append(spread(spec.name, checkpoint.read_float32(spec.name)))
                shown.update()
        return checkpoint.config.to_dict(), tensors, spreads


def _config_text(path: Path, config: dict[str, Any], report: dict[str, Any]) -> str:
    lines = [f"{path}: {count_text(report['parameters'])} parameters, {byte_text(report['bytes'])}"]
    pathways = config["pathways"]
    rows = [(name, _value(value)) for name, value in config.items() if name not in ("architectures", "pathways")]
    lines.append(table(["field", "value"], rows))
    fields = [[f["name"] for f in p["fields"]] for p in pathways]
    lines.append("")
    lines.append(
        table(
            ["pathway", "kind", "source", "tokens", "positions", "hidden", "fields"],
            [
                [
                    p["name"],
                    p["kind"],
                    p["source"],
                    p["max_tokens"],
                    p["position_embedding"],
                    _value(p["hidden_sizes"]),
                    _value(names),
                ]
                for p, names in zip(pathways, fields, strict=True)
            ],
            "<<<>",
        )
    )
    return "\n".join(lines)


def _value(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _tensor_text(tensors: list[dict[str, Any]], *, every: bool) -> str:
    """A row per tensor, or per group of tensors whose names differ in numbers alone."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for tensor in tensors:
        name = tensor["name"] if every else re.sub(r"\.\d+(?=\.)", ".*", tensor["name"])
        groups.setdefault((name, " x ".join(map(str, tensor["shape"])), tensor["dtype"]), []).append(tensor)
    rows = [
        [name, shape, dtype, len(members), byte_text(sum(t["bytes"] for t in members))]
        for (name, shape, dtype), members in groups.items()
    ]
    return table(["tensor", "shape", "dtype", "count", "size"], rows, "<<<>>")
