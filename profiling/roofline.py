"""The least time that each op of a generation, and the whole, can take on a machine: roofline floors.

    python profiling/roofline.py --model 1B --batch 32 --widths 512,512,512 --context 512 --precision fp8

An op cannot take less than its operations at the machine's best rate, nor less than the bytes that must come from
memory: its weights, and its other tensors where together they are larger than the L2 cache. "streamed" is the same with
every tensor read from and written to memory. The ceilings are those that bench_ops.py measured, or the datasheet's.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sizes import SIZES, Linear, linears, sized_config

from onerec_engine.cli.output import table
from onerec_engine.config import OneRecV2Config, load_config

__all__ = ["DATASHEETS", "L2_BYTES", "Op", "datasheet_of", "floors", "least_milliseconds", "plan_ops", "read_ceilings"]

# NVIDIA's figures for the SXM cards, dense, in bytes and operations per second.
DATASHEETS = {
    "H100": {"copy": 3.35e12, "bf16": 989e12, "fp8": 1979e12, "attention": 989e12},
    "H200": {"copy": 4.8e12, "bf16": 989e12, "fp8": 1979e12, "attention": 989e12},
}
L2_BYTES = 50e6
COLUMNS = ("count", "flops", "fetched", "activations", "floor", "streamed")
MEASURED = Path(__file__).resolve().parent / "results/bench_ops.json"


@dataclass(frozen=True)
class Op:
    """Ops of one kind in one step.

    Attributes:
        name: what it is.
        step: of the decoder; -1 is the context.
        count: how many there are.
        flops: of each.
        fetched: bytes of the weights that each reads.
        activations: bytes of the other tensors that each reads and writes.
        unit: whose rate its operations are held against.
    """

    name: str
    step: int
    count: int
    flops: float
    fetched: float
    activations: float
    unit: str = "bf16"

    def floor(self, ceilings: dict[str, float], l2_bytes: float = L2_BYTES) -> float:
        """Seconds of all `count` ops, at least."""
        moved = self.fetched + (self.activations if self.activations > l2_bytes else 0.0)
        return self.count * max(self._compute(ceilings), moved / ceilings["copy"])

    def streamed(self, ceilings: dict[str, float]) -> float:
        """Seconds of all `count` ops if every tensor went through memory."""
        return self.count * max(self._compute(ceilings), (self.fetched + self.activations) / ceilings["copy"])

    def _compute(self, ceilings: dict[str, float]) -> float:
        return self.flops / ceilings[self.unit] if self.flops else 0.0


def plan_ops(config: OneRecV2Config, batch: int, widths: Sequence[int], context: int, precision: str) -> list[Op]:
    """All ops of one generation: `batch` requests of `context` tokens, `widths` beams kept after each level."""
    ops = list(_context_ops(config, batch * context))
    kinds = {linear.name: linear for linear in linears(config)}
    for step in range(config.levels):
        rows = batch * (1 if step == 0 else widths[step - 1])
        ops += _Step(config, kinds, precision, batch, context, step, rows).ops()
        ops.append(_select(config, step, rows, batch * widths[step]))
    return ops


def _context_ops(config: OneRecV2Config, tokens: int) -> Iterator[Op]:
    for pathway in config.pathways:
        width, share = config.pathway_input_dim(pathway), tokens / len(config.pathways)
        yield Op("embed_context", -1, 1, 0.0, 2 * share * width, 2 * share * width)
        for outputs in (*pathway.hidden_sizes, config.d_context):
            moved = 2 * share * (width + outputs)
            yield Op("context linear", -1, 1, 2.0 * share * width * outputs, 2.0 * width * outputs, moved)
            width = outputs
        yield Op("scatter_context", -1, 1, 0.0, 0.0, 4 * share * config.d_context)
    norms = config.num_context_kv_layers * config.context_kv_split
    yield Op("context norm", -1, norms, 0.0, 0.0, 4 * tokens * config.d_context_kv)


def _select(config: OneRecV2Config, step: int, rows: int, kept: int) -> Op:
    return Op("beam_select", step, 1, 0.0, 0.0, 4.0 * rows * config.codebook_sizes[step] + 24.0 * kept)


@dataclass(frozen=True)
class _Step:
    """One decode step, op by op as the engine issues it."""

    config: OneRecV2Config
    kinds: dict[str, Linear]
    precision: str
    batch: int
    context: int
    step: int
    rows: int

    def ops(self) -> list[Op]:
        c, d = self.config, self.config.hidden_size
        layers = c.num_hidden_layers
        moe = sum(c.is_moe_layer(layer) for layer in range(layers))
        kv = c.num_key_value_heads * c.head_dim
        out = [
            self._moved("embed_step", 1, 4 * d),
            self._moved("rms_norm", 2 * layers, 2 * d + self._code(d)),
            self._linear("cross q", layers),
            self._cross(layers),
            self._linear("self qkv", layers),
            self._moved(
                "self-attention", layers, 2 * c.d_attention + 4 * kv * (self.step + 1) + self._code(c.d_attention)
            ),
            self._linear("attention o", 2 * layers),
        ]
        if self.precision == "fp8":
            out.append(self._moved("quantize", layers, 3 * c.d_attention + 4))
        if layers > moe:
            out += self._network("gate_up", "down", layers - moe, c.intermediate_size)
            out.append(self._moved("rms_norm", layers - moe, 2 * d + self._code(d)))
        if moe:
            out += self._mixture(moe)
        out.append(self._moved("rms_norm", 1, 4 * d))
        head = self.kinds["head"]
        if len(set(c.codebook_sizes)) > 1:
            head = Linear("head", c.codebook_sizes[self.step], d, 1, quantized=False, logits=True)
        out.append(self._product("head", 1, head))
        return out

    def _mixture(self, layers: int) -> Iterator[Op]:
        c, d, top_k = self.config, self.config.hidden_size, self.config.num_experts_per_tok
        codes = 1 + min(c.n_shared_experts, 1) if self.precision == "fp8" else 0  # of blocks, and of rows
        yield self._moved("rms_norm", layers, 4 * d + codes * self._code(d))
        yield self._linear("router", layers)
        yield self._moved("route", layers, 4 * c.n_routed_experts + 16 * top_k)
        yield self._moved("gather_rows", layers, (1 + top_k) * self._code(d))
        yield self._grouped("experts gate_up", layers)
        width = c.moe_intermediate_size
        yield self._moved("swiglu", layers, top_k * (4 * width + self._code(width)))
        yield self._grouped("experts down", layers)
        if c.n_shared_experts:
            yield from self._network("shared gate_up", "shared down", layers, c.n_shared_experts * width)
        yield self._moved("moe_combine", layers, 2 * d * (top_k + 2 + min(c.n_shared_experts, 1)))

    def _network(self, gate_up: str, down: str, layers: int, width: int) -> Iterator[Op]:
        yield self._linear(gate_up, layers)
        yield self._moved("swiglu", layers, 4 * width + self._code(width))
        yield self._linear(down, layers)

    def _code(self, columns: int) -> float:
        """Bytes of a row that a quantised linear reads."""
        return columns + 4 if self.precision == "fp8" else 2 * columns

    def _moved(self, name: str, count: int, row_bytes: float) -> Op:
        return Op(name, self.step, count, 0.0, 0.0, self.rows * row_bytes)

    def _linear(self, name: str, count: int) -> Op:
        return self._product(name, count, self.kinds[name])

    def _product(self, name: str, count: int, linear: Linear) -> Op:
        fp8 = self.precision == "fp8" and linear.quantized
        read = self._code(linear.inputs) if fp8 else 2 * linear.inputs
        written = (4 if linear.logits else 2) * linear.outputs * (2 if linear.residual else 1)
        return Op(
            name,
            self.step,
            count,
            2.0 * self.rows * linear.outputs * linear.inputs,
            (1.0 if fp8 else 2.0) * linear.outputs * linear.inputs,
            self.rows * (read + written),
            "fp8" if fp8 else "bf16",
        )

    def _grouped(self, name: str, count: int) -> Op:
        """The experts' products; weights of the experts that rows are expected to reach if all are equally likely."""
        linear, top_k = self.kinds[name], self.config.num_experts_per_tok
        fp8 = self.precision == "fp8"
        reached = linear.experts * (1.0 - (1.0 - top_k / linear.experts) ** self.rows)
        pairs = self.rows * top_k
        return Op(
            name,
            self.step,
            count,
            2.0 * pairs * linear.outputs * linear.inputs,
            (1.0 if fp8 else 2.0) * reached * linear.outputs * linear.inputs,
            pairs * (self._code(linear.inputs) + 2.0 * linear.outputs),
            "fp8" if fp8 else "bf16",
        )

    def _cross(self, layers: int) -> Op:
        c = self.config
        keys = 2.0 * self.batch * self.context * c.d_context_kv * c.context_kv_split
        flops = 4.0 * self.rows * self.context * c.d_attention
        moved = keys + 4.0 * self.rows * c.d_attention
        return Op("cross-attention", self.step, layers, flops, 0.0, moved, "attention")


def floors(ops: Sequence[Op], ceilings: dict[str, float]) -> dict[str, dict[str, float]]:
    """Per name of op: how many, operations, bytes, and the least milliseconds, summed over the steps."""
    out: dict[str, dict[str, float]] = {}
    for op in ops:
        row = out.setdefault(op.name, dict.fromkeys(COLUMNS, 0.0))
        row["count"] += op.count
        row["flops"] += op.count * op.flops
        row["fetched"] += op.count * op.fetched
        row["activations"] += op.count * op.activations
        row["floor"] += 1e3 * op.floor(ceilings)
        row["streamed"] += 1e3 * op.streamed(ceilings)
    return out


def least_milliseconds(
    config: OneRecV2Config, batch: int, width: int, context: int, precision: str, ceilings: dict[str, float]
) -> float:
    """The floor of a whole generation with beams of one width at all levels."""
    ops = plan_ops(config, batch, [width] * config.levels, context, precision)
    return sum(op["floor"] for op in floors(ops, ceilings).values())


def datasheet_of(device: str) -> dict[str, float]:
    """Rates by unit of the card whose name is part of the device's; the H100's for any other."""
    return next((rates for card, rates in DATASHEETS.items() if card in device), DATASHEETS["H100"])


def read_ceilings(source: str | None) -> tuple[dict[str, float], str]:
    """Rates by unit and where they are from: a card of DATASHEETS, a file of bench_ops.py, or None to find one."""
    if source is None and not MEASURED.is_file():
        source = "H100"
    if source in DATASHEETS:
        return DATASHEETS[source], f"datasheet, {source} SXM"
    file = Path(source) if source else MEASURED
    if not file.is_file():
        raise SystemExit(
            f"[roofline] got ceilings {source!r}, want {' or '.join(DATASHEETS)}, or a file of bench_ops.py."
        )
    raw: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    measured = {unit: float(rate) for unit, rate in raw["ceilings"].items()}
    device = raw["facts"].get("device", "no GPU")
    return datasheet_of(device) | measured, f"{file.name}, {device}"


def main() -> int:
    args = _arguments()
    config = load_config(args.checkpoint) if args.checkpoint else sized_config(args.model, args.context)
    widths = args.widths * (config.levels if len(args.widths) == 1 else 1)
    if len(widths) != config.levels:
        raise SystemExit(f"[roofline] got {len(widths)} widths, want {config.levels}, one per level.")
    ceilings, source = read_ceilings(args.ceilings)
    found = floors(plan_ops(config, args.batch, widths, args.context, args.precision), ceilings)
    what = f"{args.batch} requests, widths {widths}, context {args.context}"
    print(f"{args.checkpoint or args.model}, {args.precision}: {what}")
    rates = ", ".join(f"{unit} {rate / 1e12:.4g}" for unit, rate in ceilings.items())
    print(f"ceilings ({source}), 10^12 bytes or operations per second: {rates}\n")
    rows = [
        [
            name,
            int(row["count"]),
            f"{row['flops'] / 1e9:.1f}",
            f"{row['fetched'] / 1e6:.1f}",
            f"{row['activations'] / 1e6:.1f}",
            f"{row['floor']:.4f}",
            f"{row['streamed']:.4f}",
        ]
        for name, row in sorted(found.items(), key=lambda entry: -entry[1]["streamed"])
    ]
    total = {key: sum(row[key] for row in found.values()) for key in ("floor", "streamed")}
    rows.append(["all", "", "", "", "", f"{total['floor']:.4f}", f"{total['streamed']:.4f}"])
    headers = ["op", "count", "GFLOP", "weights MB", "other MB", "floor ms", "streamed ms"]
    print(table(headers, rows, "<>>>>>>"))
    if args.json:
        content = {"source": source, "ceilings": ceilings, "ops": found, "total_ms": total}
        Path(args.json).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


def _arguments() -> argparse.Namespace:
    def integers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--model", default="1B", choices=SIZES, help="a size of the report (default: 1B)")
    what.add_argument("--checkpoint", help="a checkpoint directory, or its config.json")
    parser.add_argument("--batch", type=int, default=1, help="requests (default: 1)")
    parser.add_argument("--widths", type=integers, default=[512], help="beams (default: 512 at each level)")
    parser.add_argument("--context", type=int, default=512, help="tokens of a request (default: 512)")
    parser.add_argument("--precision", default="fp8", choices=["bf16", "fp8"], help="(default: fp8)")
    parser.add_argument(
        "--ceilings", help="H100 or H200 (datasheet), or a results file of bench_ops.py (default: that in results/)"
    )
    parser.add_argument("--json", help="where to write the figures")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
