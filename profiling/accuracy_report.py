"""Precisions against FP32, user by user, and the page that says so."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from accuracy_runs import Run

from onerec_engine.evaluation import CUTOFFS, metrics, ndcg_at, paired_difference, recall_at

MEASURES = [(f"recall@{k}", recall_at, k) for k in CUTOFFS] + [(f"ndcg@{k}", ndcg_at, k) for k in CUTOFFS]
TITLES = {"recall@5": "R@5", "recall@10": "R@10", "ndcg@5": "N@5", "ndcg@10": "N@10"}
BEHIND = [
    "precision",
    "discordant users at R@10 (found, lost)",
    "top 10 shared",
    "top 50 shared",
    "mean abs. difference of log-probability",
    "99th percentile",
    "largest",
    "mean signed",
]
RELATIVE_LIMIT = 0.01
DEVICES = {"cpu": "CPU", "cuda": "GPU"}

# R@5, R@10, N@5, N@10 of others on the same sequences under the same protocol.
TIGER_CF = "[tiger-cf](https://github.com/Timoniche/tiger-cf)"
OTHERS = [
    ("Popularity", (0.0104, 0.0159, 0.0061, 0.0078), "measured apart, same file and protocol"),
    ("Item-kNN (window 5, last 10 items)", (0.0434, 0.0618, 0.0305, 0.0365), "measured apart, same file and protocol"),
    ("SASRec", (0.0320, 0.0516, 0.0209, 0.0272), f"README of {TIGER_CF}"),
    ("TIGER, about 5 M parameters", (0.0376, 0.0582, 0.0252, 0.0319), f"README of {TIGER_CF}"),
]


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
        "p99_abs": float(np.quantile(np.abs(gaps), 0.99)),
        "max_abs": float(np.abs(gaps).max()),
        "mean": float(gaps.mean()),
    }
    return out


def lossless(result: dict[str, Any], baseline: dict[str, Any]) -> bool:
    """Whether FP8 "loses nothing": no difference of R@10 outside its interval's noise, and under 1 % of it."""
    paired = result["paired"]["recall@10"]
    relative = abs(paired["difference"]) / max(baseline["metrics"]["recall@10"], 1e-12)
    return _contains_zero(paired) and relative < RELATIVE_LIMIT


def page(reports: dict[str, dict[str, Any]]) -> str:
    """The whole of docs/accuracy.md, from the reports of one or more devices over the same users."""
    first = next(iter(reports.values()))
    models = {model["title"]: model["description"] for model in first["models"]}
    results = {
        (device, model["title"]): model["results"] for device, report in reports.items() for model in report["models"]
    }
    lines = [
        "# Accuracy of the precisions",
        "",
        *_paragraph(
            "What BF16 and FP8 change on real data. Every precision answers for the same users and is compared with "
            "FP32 on the same device user by user. Nothing was calibrated, and no model was trained for a precision. "
            "What is rounded where: [numerics.md](numerics.md)."
        ),
        "",
        "## Does FP8 lose anything?",
        "",
        *_paragraph(
            'The claim is "FP8 loses nothing". It counts as supported where the 95 % interval of the paired difference '
            f"of R@10 contains 0 and the difference is under {100 * RELATIVE_LIMIT:g} % of FP32's R@10."
        ),
        "",
    ]
    for (device, title), found in results.items():
        lines += _verdicts(f"{title} on the {DEVICES[device]}", found)
    lines += ["", *_conclusion(list(results.values())), "", "## How it was measured", ""]
    lines += _circumstances(first)
    for report in reports.values():
        lines += _machine(report)
    lines += ["A command writes this page, and its figures into `profiling/results`."]
    for title, description in models.items():
        lines += ["", f"## {title}", "", *_paragraph(description)]
        for device in reports:
            lines += ["", f"### On the {DEVICES[device]}", "", *_model(results[device, title])]
    lines += ["", "## Beside other models", "", *_others(first)]
    lines += ["", "## How to read this", "", *(line for note in _NOTES for line in _item(note))]
    return "\n".join(lines) + "\n"


def _circumstances(report: dict[str, Any]) -> list[str]:
    users = "all" if report["users"] == report["of_users"] else f"a sample of {report['users']:,} of"
    return [
        *_item(
            f"Data: Amazon Beauty, 5-core, the sequences of {TIGER_CF}; {users} {report['of_users']:,} users, "
            f"{report['items']:,} items, {report['interactions']:,} interactions."
        ),
        *_item(
            "Protocol: leave-one-out. A user's last item is to be found by a full ranking over the catalogue from the "
            "items before it, which are themselves excluded; constrained beam search of width "
            f"{report['beam_width']}."
        ),
    ]


def _machine(report: dict[str, Any]) -> list[str]:
    machine, build, gpu = report["machine"], report["build"], report.get("gpu")
    if gpu is None:
        where = (
            f"CPU: {machine['cpu']} ({machine['architecture']}), {machine['usable_cores']} cores; instruction sets "
            f"{', '.join(machine['isa'])}. Engine {build['version']}, {build['gemm']}, compiled by "
            f"{build['compiler']}. FP8 on a CPU uses the codes, scales and roundings of numerics.md: it shows "
            "accuracy, not speed."
        )
    else:
        where = f"GPU: {gpu['device']}, driver {gpu['driver']}. Engine {build['version']}, commit {gpu['commit']}."
    return [*_item(where), "", "  ```sh", f"  {report['command']}", "  ```", ""]


def _label(precision: str, results: Sequence[dict[str, Any]]) -> str:
    """A precision's name; that of FP8 says how experts are quantised where two ways are compared."""
    if any(r["precision"] == "fp8_channel" for r in results):
        if precision == "fp8":
            return "FP8, experts 1 x 128 by 128 x 128"
        if precision == "fp8_channel":
            return "FP8, experts per token and channel"
    return precision.upper()


def _model(results: Sequence[dict[str, Any]]) -> list[str]:
    others = list(results[1:])
    lines = _table(
        ["precision", *TITLES.values()],
        [[_label(r["precision"], results), *_figures(r)] for r in results],
    )
    if not others:
        return lines
    lines += ["", "Difference from FP32, with its 95 % interval:", ""]
    lines += _table(
        ["precision", *TITLES.values()],
        [[_label(r["precision"], results), *(_interval(r["paired"][name]) for name in TITLES)] for r in others],
    )
    lines += ["", "Users, beams and scores:", ""]
    return lines + _table(BEHIND, [[_label(r["precision"], results), *_behind(r)] for r in others])


def _figures(r: dict[str, Any]) -> list[str]:
    return [f"{r['metrics'][name]:.4f}" for name in TITLES]


def _behind(r: dict[str, Any]) -> list[str]:
    logprob = r["logprob"]
    return [
        f"{r['gained'] + r['lost']} ({r['gained']}, {r['lost']})",
        *(f"{100 * r['overlap'][k]:.2f} %" for k in ("10", "50")),
        f"{logprob['mean_abs']:.4f}",
        f"{logprob['p99_abs']:.3f}",
        f"{logprob['max_abs']:.3f}",
        f"{logprob['mean']:+.4f}",
    ]


def _verdicts(title: str, results: Sequence[dict[str, Any]]) -> list[str]:
    """One item of a list per FP8 variant of a model."""
    lines = []
    for r in results[1:]:
        if r["precision"].startswith("fp8"):
            lines += _verdict(f"{title}, {_label(r['precision'], results)}", r, results[0])
    return lines


def _conclusion(models: Sequence[Sequence[dict[str, Any]]]) -> list[str]:
    """What all verdicts come to."""
    pairs = [(r, results[0]) for results in models for r in results if r["precision"].startswith("fp8")]
    if not all(lossless(r, baseline) for r, baseline in pairs):
        return _paragraph(
            "So the claim does not hold throughout; the tables below show where it fails, and by how much."
        )
    bound = max(-r["paired"]["recall@10"]["low"] / baseline["metrics"]["recall@10"] for r, baseline in pairs)
    return _paragraph(
        "So R@10 does not tell FP8 from FP32 here. What this number of users cannot exclude is a small loss: up to "
        f"{100 * bound:.1f} % of R@10 lies inside the widest of the intervals."
    )


def _verdict(title: str, r: dict[str, Any], baseline: dict[str, Any]) -> list[str]:
    paired = r["paired"]["recall@10"]
    fp32 = max(baseline["metrics"]["recall@10"], 1e-12)
    contained = _contains_zero(paired)
    outside = [TITLES[name] for name in TITLES if name != "recall@10" and not _contains_zero(r["paired"][name])]
    if outside:
        rest = f"{'not so' if contained else 'nor does'} that of {' and '.join(outside)}"
    else:
        rest = "so do those of R@5, N@5 and N@10" if contained else "those of R@5, N@5 and N@10 do"
    return _item(
        f"**{title}: {'supported' if lossless(r, baseline) else 'not supported'}.** R@10 changes by "
        f"{paired['difference']:+.5f} ({100 * paired['difference'] / fp32:+.2f} %). The interval, "
        f"{100 * paired['low'] / fp32:+.2f} % to {100 * paired['high'] / fp32:+.2f} % of R@10, "
        f"{'contains' if contained else 'does not contain'} 0; {rest}. Of {r['users']:,} users, "
        f"{r['gained']} have their item among the first ten only in FP8, and {r['lost']} only in FP32."
    )


def _others(report: dict[str, Any]) -> list[str]:
    ours = [
        [f"{model['title']}, {_label(r['precision'], model['results'])}", *_figures(r), "this page"]
        for model in report["models"]
        for r in model["results"]
        if not r["precision"].startswith("bf16")
    ]
    theirs = [[name, *(f"{figure:.4f}" for figure in figures), source] for name, figures, source in OTHERS]
    return [
        "The same sequences, the last item held out, a full ranking with the user's own items excluded:",
        "",
        *_table(["model", *TITLES.values(), "from"], [*theirs, *ours]),
        "",
        *_paragraph(
            "tiger-cf reimplements TIGER with fewer parameters than the 13 M of its paper and takes semantic ids from "
            "content embeddings of the items; those of our models come from the items' co-occurrence in the training "
            "part. The table shows that FP8 was tried on models that recommend well, not that one architecture beats "
            "another."
        ),
    ]


def _contains_zero(paired: dict[str, Any]) -> bool:
    return bool(paired["low"] <= 0 <= paired["high"])


def _interval(paired: dict[str, Any]) -> str:
    return f"{paired['difference']:+.5f} [{paired['low']:+.5f}, {paired['high']:+.5f}]"


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Mean share of the items of `a` [users, k] that are also among those of `b`."""
    shared = (a[:, :, None] == b[:, None, :]) & (a >= 0)[:, :, None]
    return float((shared.any(2).sum(1) / np.maximum((a >= 0).sum(1), 1)).mean())


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    out = [f"| {' | '.join(headers)} |", f"| --- |{' ---: |' * (len(headers) - 1)}"]
    return out + [f"| {' | '.join(row)} |" for row in rows]


def _paragraph(text: str) -> list[str]:
    return textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False)


def _item(text: str) -> list[str]:
    """An item of a list."""
    return textwrap.wrap(f"* {text}", 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


_NOTES = [
    "R@k and N@k are recall and NDCG at k with one relevant item per user. The intervals are percentile intervals of a "
    "paired bootstrap over users: 10,000 samples, seed 0.",
    "One in twenty of such intervals misses the true difference, on average. The two devices multiply the same codes "
    "of weights and differ by what numerics.md lists under Devices, mostly the last bits of sums, which is enough to "
    "let other near-ties change places.",
    "Discordant users are those for whom one precision has the target among the first ten and the other has not.",
    "Shared items compare sets, per user and averaged; near-ties change places without any loss of recall, so the "
    "overlap is lower than the recall suggests.",
    "Differences of log-probability are taken on the same sequences for every precision, teacher-forced: FP32's ten "
    "best items of each user and the user's true next item.",
    "The largest differences of a mixture of experts, in BF16 too, are where a near-tie of the router goes to another "
    "expert.",
]
