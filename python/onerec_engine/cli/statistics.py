"""Variance, AbsMax and AbsP99 of tensors: figure 1 of "Quantized Inference for OneRec-V2" (arXiv 2603.11486)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onerec_engine.cli.failure import CommandError
from onerec_engine.cli.output import table

__all__ = ["Spread", "draw", "kind", "means", "spread", "spread_table"]


@dataclass(frozen=True, slots=True)
class Spread:
    """How widely one tensor's values are spread.

    Attributes:
        name: of the tensor, or of the linear whose input it is.
        variance: of all values.
        absmax: the largest magnitude.
        absp99: the magnitude that 99 % of the values do not exceed.
    """

    name: str
    variance: float
    absmax: float
    absp99: float

    def to_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self)


def spread(name: str, values: npt.NDArray[np.float32]) -> Spread:
    """Measures a tensor of any shape; zeros for an empty one."""
    if values.size == 0:
        return Spread(name, 0.0, 0.0, 0.0)
    magnitude = np.abs(values.reshape(-1))
    place = int(np.ceil(0.99 * magnitude.size)) - 1
    p99 = float(np.partition(magnitude, place)[place])
    return Spread(name, float(np.var(values, dtype=np.float64)), float(magnitude.max()), p99)


def kind(name: str) -> str:
    """A tensor's name without its layer, level and expert: what is averaged in one row of the table."""
    short = re.sub(r"^model\.layers\.\d+\.", "", name).removesuffix(".weight")
    return re.sub(r"\.\d+(?=\.|$)", "", short)


def means(spreads: Sequence[Spread]) -> dict[str, float]:
    """Means over tensors, as the paper prints them; zeros for none."""
    out = {}
    for field in ("variance", "absmax", "absp99"):
        out[field] = float(np.mean([getattr(s, field) for s in spreads])) if spreads else 0.0
    return out


def spread_table(spreads: Sequence[Spread], title: str) -> str:
    """A row per kind of tensor with means over its tensors, and the mean over all."""
    groups: dict[str, list[Spread]] = {}
    for one in spreads:
        groups.setdefault(kind(one.name), []).append(one)
    rows = [_row(name, members) for name, members in groups.items()]
    rows.append(_row("mean of all", list(spreads)))
    return table([title, "tensors", "variance", "AbsMax", "AbsP99", "largest"], rows, "<>>>>>")


def draw(file: Path, groups: Iterable[tuple[str, Sequence[Spread]]], title: str) -> None:
    """Draws one point per tensor over its kind, in three panels on logarithmic axes.

    Args:
        file: the picture; its ending decides the format.
        groups: a name (weights, inputs) and its tensors.
        title: above the picture.

    Raises:
        CommandError: without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise CommandError("[inspect] --plot needs matplotlib. Run: pip install 'onerec_engine[profile]'") from None
    shown = [(name, list(members)) for name, members in groups if members]
    kinds = list(dict.fromkeys(kind(s.name) for _, members in shown for s in members))
    figure = Figure(figsize=(14, 1.5 + 0.28 * len(kinds)), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, 3, sharey=True, squeeze=False)[0]
    for panel, (field, label) in zip(
        panels, (("variance", "variance"), ("absmax", "AbsMax"), ("absp99", "AbsP99")), strict=True
    ):
        for number, (name, members) in enumerate(shown):
            heights = [kinds.index(kind(s.name)) + 0.2 * (number - (len(shown) - 1) / 2) for s in members]
            panel.scatter(
                [getattr(s, field) for s in members], heights, s=14, alpha=0.7, label=name, color=f"C{number}"
            )
            panel.axvline(means(members)[field], color=f"C{number}", linewidth=0.8, linestyle="--")
        panel.set_xscale("log")
        panel.set_xlabel(f"{label} (dashed: mean over tensors)")
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(kinds)), kinds)
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(shown))
    figure.savefig(file, dpi=120)


def _row(name: str, members: Sequence[Spread]) -> list[str]:
    mean = means(members)
    largest = max((s.absmax for s in members), default=0.0)
    return [name, str(len(members)), *(f"{mean[f]:.3g}" for f in ("variance", "absmax", "absp99")), f"{largest:.3g}"]
