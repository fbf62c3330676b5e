"""Times every dense kernel on the report's shapes and writes the table of what the engine's model gets wrong.

    cmake -S . -B build/cuda-tests -G Ninja -DONEREC_CUDA=ON -DONEREC_BUILD_TUNER=ON -DONEREC_BUILD_BINDINGS=OFF
    cmake --build build/cuda-tests --target tune_gemms
    python profiling/tune_gemms.py --program build/cuda-tests/bin/tune_gemms --json profiling/results/gemm_tuning.json
    python profiling/tune_gemms.py --from profiling/results/gemm_tuning.json --write

The winner at a number of rows serves the rows from the next smaller number on, since capacities are rounded up. A shape
gets a line where the winner takes at least 3 % less time than the one that the model of gemm_select.h expects to win.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from gpu_facts import gpu_facts
from sizes import SIZES, sized_config

from onerec_engine.cli.output import table

ROOT = Path(__file__).resolve().parent.parent
HEADER = ROOT / "csrc/backends/cuda/gemm/measured_gemms.h"
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
MODELS = ("0.1B", "1B", "MoE 4B-A0.5B")
GAIN = 0.97
WORST_DIFFERENCE = 2e-2
# What takes less time inside a generation than the winner by itself does (profiling/NOTES.md).
IN_GENERATIONS = {("fp8_bf16", 1792, 7168, 512): "fp8_bf16 128x128x128 cluster 2 split 2"}
ENUMS = {"fp8_bf16": "kFp8ToBf16", "bf16_bf16": "kBf16ToBf16", "bf16_f32": "kBf16ToF32"}

Line = dict[str, Any]


def shapes(models: Iterable[str]) -> list[tuple[str, int, int]]:
    """(types, outputs, inputs) of all dense products of a model, in BF16 and FP8, and of those with SwiGLU."""
    found: dict[tuple[str, int, int], None] = {}
    for model in models:
        config = sized_config(model, 512, 8192)
        d = config.hidden_size
        heads = config.num_attention_heads * config.head_dim
        qkv = heads + 2 * config.num_key_value_heads * config.head_dim
        products = [(heads, d), (d, heads), (qkv, d), (2 * config.intermediate_size, d), (d, config.intermediate_size)]
        gate_ups = [(2 * config.intermediate_size, d)]
        if config.n_routed_experts:
            width = config.moe_intermediate_size * config.n_shared_experts
            products += [(2 * width, d), (d, width)]
            gate_ups.append((2 * width, d))
        for types in ("fp8_bf16", "bf16_bf16"):
            found |= {(types, outputs, inputs): None for outputs, inputs in products}
        for types in ("fp8_swiglu", "fp8_swiglu_static"):
            found |= {(types, outputs, inputs): None for outputs, inputs in gate_ups}
        found[("bf16_f32", 8192, d)] = None
        if config.n_routed_experts:
            found[("bf16_f32", (config.n_routed_experts + 15) // 16 * 16, d)] = None
    return list(found)


def winners(lines: Iterable[Line]) -> list[tuple[tuple[str, int, int], int, Line, Line]]:
    """Per shape and number of rows: the winner and what the model expected to win."""
    groups: dict[tuple[str, int, int, int], list[Line]] = {}
    for line in lines:
        groups.setdefault((line["types"], line["outputs"], line["inputs"], line["rows"]), []).append(line)
    out = []
    for (types, outputs, inputs, rows), group in groups.items():
        right = [line for line in group if line["difference"] <= WORST_DIFFERENCE]
        # The plain kernel is left out where it takes long; a model that expects it to win all the same is wrong.
        modelled = next((line for line in group if line["modelled"]), {"name": "not measured", "us": math.inf})
        wanted = IN_GENERATIONS.get((types, outputs, inputs, rows))
        best = next((line for line in right if line["name"] == wanted), min(right, key=lambda line: float(line["us"])))
        out.append(((types, outputs, inputs), rows, best, modelled))
    return out


def header(lines: Iterable[Line], device: str) -> str:
    """measured_gemms.h for these measurements."""
    rows_of: list[tuple[tuple[str, int, int], int, int, int]] = []
    for shape, rows, best, modelled in winners(lines):
        if shape[0] not in ENUMS or best is modelled:
            continue
        if (*shape, rows) not in IN_GENERATIONS and best["us"] > GAIN * modelled["us"]:
            continue
        first = max((r for r in ROWS if r < rows), default=0) + 1
        if rows_of and rows_of[-1][0] == shape and rows_of[-1][3] == best["config"] and rows_of[-1][2] + 1 == first:
            rows_of[-1] = (shape, rows_of[-1][1], rows, best["config"])
        else:
            rows_of.append((shape, first, rows, best["config"]))
    body = "".join(
        f"    {{GemmTypes::{ENUMS[types]}, {outputs}, {inputs}, {first}, {last}, {config}}},\n"
        for (types, outputs, inputs), first, last, config in rows_of
    )
    text = HEADER.read_text(encoding="utf-8")
    start = text.index("// Written by") if "// Written by" in text else text.index("inline constexpr std::array")
    end = text.index("}  // namespace onerec::cuda")
    made = (
        f"// Written by profiling/tune_gemms.py from measurements on one {device}.\n"
        "// clang-format off\n"
        f"inline constexpr std::array<MeasuredGemm, {len(rows_of)}> kMeasuredGemms{{{{\n{body}}}}};\n"
        "// clang-format on\n\n"
    )
    return text[:start] + made + text[end:]


def measure(program: str, models: Iterable[str], seconds: float) -> list[Line]:
    """Runs the C++ program; what it printed before the time was over counts."""
    text = "".join(f"{types} {outputs} {inputs} {rows}\n" for types, outputs, inputs in shapes(models) for rows in ROWS)
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        try:
            out, _ = running.communicate(text, timeout=seconds)
        except subprocess.TimeoutExpired:
            running.kill()
            out, _ = running.communicate()
            print("[tune_gemms] the time is over; shapes behind this are missing", file=sys.stderr)
    return [json.loads(line) for line in out.splitlines() if line.endswith("}")]


def _ratio(one: Line, other: Line) -> str:
    return f"{one['us'] / other['us']:.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--program", help="the built tune_gemms")
    what.add_argument("--from", dest="source", help="measurements of an earlier run")
    parser.add_argument("--models", nargs="+", default=MODELS, choices=SIZES)
    parser.add_argument("--seconds", type=float, default=300.0, help="at most (default: 300)")
    parser.add_argument("--commit", help="what is measured (default: ask git)")
    parser.add_argument("--json", help="where to keep the measurements")
    parser.add_argument("--write", action="store_true", help="write csrc/backends/cuda/gemm/measured_gemms.h")
    args = parser.parse_args()
    if args.source:
        report = json.loads(Path(args.source).read_text(encoding="utf-8"))
    else:
        report = {"facts": gpu_facts(args.commit), "lines": measure(args.program, args.models, args.seconds)}
    if args.json:
        Path(args.json).write_text(json.dumps(report) + "\n", encoding="utf-8")
    wrong = [line for line in report["lines"] if line["difference"] > WORST_DIFFERENCE]
    cells = [
        [
            *map(str, shape),
            str(rows),
            best["name"],
            f"{best['us']:.2f}",
            modelled["name"],
            f"{modelled['us'] / best['us']:.2f}",
        ]
        for shape, rows, best, modelled in winners(report["lines"])
    ]
    print(table(["types", "N", "K", "rows", "winner", "us", "modelled", "modelled / winner"], cells, "<>>><><>"))
    ratios = [
        modelled["us"] / best["us"]
        for shape, _, best, modelled in winners(report["lines"])
        if shape[0] in ENUMS and modelled["us"] < math.inf
    ]
    print(f"What the model expects to win takes {geometric_mean(ratios):.3f} of the winner's time (geometric mean).")
    for line in wrong:
        print(f"WRONG by {line['difference']:.1e}: {line}")
    if args.write:
        HEADER.write_text(header(report["lines"], report["facts"]["device"]), encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
