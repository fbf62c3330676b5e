"""Precisions against FP32, user by user, and the page that says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from accuracy_runs import Run

from onerec_engine.evaluation import CUTOFFS, metrics, ndcg_at, paired_difference, recall_at

MEASURES = [(f"recall@{k}", recall_at, k) for k in CUTOFFS] + [(f"ndcg@{k}", ndcg_at, k) for k in CUTOFFS]
TITLES = {"recall@5": "R@5", "recall@10": "R@10", "ndcg@5": "N@5", "ndcg@10": "N@10"}
LABELS = {
    "fp32": "FP32",
    "bf16": "BF16",
    "fp8": "FP8",
    "fp8_channel": "FP8, experts per channel and token",
}
BEHIND = [
    "precision",
    "discordant users at R@10 (found, lost)",
    "top 10 shared",
    "top 50 shared",
    "mean abs. difference of log-probability",
    "largest",
    "mean signed",
]
RELATIVE_LIMIT = 0.01


def compare(run: Run, baseline: Run) -> dict[str, Any]:
    """Everything about a run, and about its differences from FP32 if it is another."""
    out: dict[str, Any] = {"precision": run.precision, "users": int(run.found.ranks.size)}
    out |= {"metrics": metrics(run.found.ranks)}
    if run is baseline:
        return out
    out["paired"] = {
        name: asdict(paired_difference(measure(baseline.found.ranks, k), measure(run.found.ranks, k)))
        for name, measure, k in MEASURES
    }
    before, after = recall_at(baseline.found.ranks, 10), recall_at(run.found.ranks, 10)
    out["gained"], out["lost"] = int((after > before).sum()), int((after < before).sum())
    out["overlap"] = {str(k): _overlap(baseline.found.items[:, :k], run.found.items[:, :k]) for k in (10, 50)}
    gaps = (run.forced - baseline.forced)[np.isfinite(baseline.forced) & np.isfinite(run.forced)]
    out["logprob"] = {
        "sequences": int(gaps.size),
        "mean_abs": float(np.abs(gaps).mean()),
        "max_abs": float(np.abs(gaps).max()),
        "mean": float(gaps.mean()),
    }
    return out


def lossless(result: dict[str, Any], baseline: dict[str, Any]) -> bool:
    """Whether FP8 "loses nothing": no difference of R@10 outside its interval's noise, and under 1 % of it."""
    paired = result["paired"]["recall@10"]
    relative = abs(paired["difference"]) / max(baseline["metrics"]["recall@10"], 1e-12)
    return bool(paired["low"] <= 0 <= paired["high"] and relative < RELATIVE_LIMIT)


def page(report: dict[str, Any]) -> str:
    """The whole of docs/accuracy.md."""
    lines = [
        "# Accuracy of the precisions",
        "",
        "What BF16 and FP8 change on real data: Amazon Beauty, leave-one-out, full ranking over the catalogue, each",
        "user's own items masked, by constrained beam search. Every precision answers for the same test users",
        f"({report['users']:,}, beam width {report['beam_width']}) and is compared with FP32 user by user. There is no",
        "calibration, and no training for a precision. How the precisions are defined: [numerics.md](numerics.md).",
        "",
        "This page is written by",
        "",
        "```sh",
        report["command"],
        "```",
    ]
    for model in report["models"]:
        lines += ["", f"## {model['title']}", "", model["description"], "", *_model(model["results"])]
    lines += ["", "## How to read this", "", *_NOTES]
    return "\n".join(lines) + "\n"


def _model(results: Sequence[dict[str, Any]]) -> list[str]:
    baseline, others = results[0], list(results[1:])
    lines = _table(
        ["precision", *TITLES.values()],
        [[LABELS[r["precision"]], *(f"{r['metrics'][name]:.4f}" for name in TITLES)] for r in results],
    )
    if not others:
        return lines
    lines += ["", "Difference from FP32, with its 95 % interval:", ""]
    lines += _table(
        ["precision", *TITLES.values()],
        [[LABELS[r["precision"]], *(_interval(r["paired"][name]) for name in TITLES)] for r in others],
    )
    lines += ["", "Users, beams and scores:", ""]
    lines += _table(
        BEHIND,
        [_behind(r) for r in others],
    )
    lines.append("")
    for r in others:
        if r["precision"].startswith("fp8"):
            lines.append(_verdict(r, baseline))
    return lines


def _behind(r: dict[str, Any]) -> list[str]:
    logprob = r["logprob"]
    return [
        LABELS[r["precision"]],
        f"{r['gained'] + r['lost']} ({r['gained']}, {r['lost']})",
        *(f"{100 * r['overlap'][k]:.2f} %" for k in ("10", "50")),
        f"{logprob['mean_abs']:.4f}",
        f"{logprob['max_abs']:.3f}",
        f"{logprob['mean']:+.4f}",
    ]


def _verdict(r: dict[str, Any], baseline: dict[str, Any]) -> str:
    paired = r["paired"]["recall@10"]
    relative = 100 * paired["difference"] / max(baseline["metrics"]["recall@10"], 1e-12)
    holds = "supported" if lossless(r, baseline) else "**not supported**"
    inside = "contains" if paired["low"] <= 0 <= paired["high"] else "does not contain"
    return (
        f"* {LABELS[r['precision']]} loses nothing: {holds}. R@10 changes by {paired['difference']:+.5f} "
        f"({relative:+.2f} %); the interval {inside} 0."
    )


def _interval(paired: dict[str, Any]) -> str:
    return f"{paired['difference']:+.5f} [{paired['low']:+.5f}, {paired['high']:+.5f}]"


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Mean share of the items of `a` [users, k] that are also among those of `b`."""
    shared = (a[:, :, None] == b[:, None, :]) & (a >= 0)[:, :, None]
    return float((shared.any(2).sum(1) / np.maximum((a >= 0).sum(1), 1)).mean())


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    out = [f"| {' | '.join(headers)} |", f"| --- |{' ---: |' * (len(headers) - 1)}"]
    return out + [f"| {' | '.join(row)} |" for row in rows]


_NOTES = [
    "* R@k and N@k are recall and NDCG at k with one relevant item per user. The intervals are percentile intervals of",
    "  a paired bootstrap over users: 10,000 samples, seed 0.",
    "* Discordant users are those for whom one precision has the target among the first ten and the other has not.",
    "* Shared items compare sets, per user and averaged; near-ties change places without any loss of recall, so the",
    "  overlap is lower than the recall suggests.",
    "* Differences of log-probability are taken on the same sequences for every precision, teacher-forced: FP32's ten",
    "  best items of each user and the user's true next item.",
    '* "Loses nothing" stands for: the interval of the difference of R@10 contains 0, and the difference is under',
    "  1 % of R@10.",
]
