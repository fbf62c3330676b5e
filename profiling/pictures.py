"""Pictures of measurements: time per kernel of one generation, and ops on the roofline.

    python profiling/pictures.py --kernels profiling/results/kernels.json --ops profiling/results/bench_ops.json

Each file given makes one PNG beside it. Needs matplotlib (extra `profile`).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

__all__ = ["draw_kernels", "draw_roofline"]

_SHOWN = 20
_UNITS = {"fp8": "tab:red", "bf16": "tab:blue", "attention": "tab:green"}


def _figure(width: float, height: float) -> tuple[Any, Any]:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(width, height), layout="constrained")


def _stamp(figure: Any, facts: dict[str, Any]) -> None:
    text = f"{facts.get('device', 'no GPU')}, commit {facts.get('commit', 'unknown')}"
    figure.supxlabel(text, fontsize=7, color="gray", x=0.99, ha="right")


def draw_kernels(report: dict[str, Any], to: Path) -> None:
    """Bars: what kernel_times.py found."""
    kernels = report["kernels"]
    rest = sum(row["us"] for row in kernels[_SHOWN:])
    rows = kernels[:_SHOWN] + ([{"kernel": "all others", "count": len(kernels) - _SHOWN, "us": rest}] if rest else [])
    figure, axes = _figure(9, 1.2 + 0.3 * len(rows))
    labels = [f"{row['kernel']}  ({row['count']})" for row in rows]
    bars = axes.barh(labels, [row["us"] / 1e3 for row in rows], color="tab:blue")
    axes.bar_label(bars, [f"{row['us'] / report['total_us']:.1%}" for row in rows], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("milliseconds of one generation")
    figure.suptitle(f"{report['generation']}: {report['total_us'] / 1e3:.2f} ms")
    _stamp(figure, report["facts"])
    figure.savefig(to, dpi=130)


def draw_roofline(report: dict[str, Any], to: Path) -> None:
    """Rate over intensity: what bench_ops.py measured of our ops, under the ceilings of the same run."""
    ceilings = report["datasheet"] | report["ceilings"]
    figure, axes = _figure(9, 6)
    reach = [10.0, 5e3]
    for unit, color in _UNITS.items():
        ridge = ceilings[unit] / ceilings["copy"]
        axes.plot(
            [reach[0], ridge, reach[1]],
            [reach[0] * ceilings["copy"] / 1e12, ceilings[unit] / 1e12, ceilings[unit] / 1e12],
            color=color,
            linewidth=1,
            label=f"{unit}: {ceilings[unit] / 1e12:.0f} TFLOP/s",
        )
        own = [row for row in report["rows"] if row["unit"] == unit and _measured(row)]
        axes.scatter(
            [row["flops"] / row["bytes"] for row in own],
            [row["flops"] / row["seconds"] / 1e12 for row in own],
            s=[8 + 4 * max(0, len(str(row["rows"])) - 1) ** 2 for row in own],
            color=color,
            alpha=0.6,
            linewidths=0,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations per byte (every tensor once)")
    axes.set_ylabel("TFLOP/s")
    axes.set_title(f"Ops of the engine; slope {ceilings['copy'] / 1e12:.2f} TB/s; larger dots have more rows")
    axes.grid(which="both", linewidth=0.3)
    axes.legend()
    _stamp(figure, report["facts"])
    figure.savefig(to, dpi=130)


def _measured(row: dict[str, Any]) -> bool:
    return bool(row["seconds"]) and row["contestant"].startswith("ours") and row["ok"] is not False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", type=Path, help="figures of kernel_times.py")
    parser.add_argument("--ops", type=Path, help="figures of bench_ops.py")
    args = parser.parse_args()
    if args.kernels is None and args.ops is None:
        parser.error("want --kernels, --ops or both")
    for source, draw in ((args.kernels, draw_kernels), (args.ops, draw_roofline)):
        if source is not None:
            target = source.with_suffix(".png")
            draw(json.loads(source.read_text(encoding="utf-8")), target)
            print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
