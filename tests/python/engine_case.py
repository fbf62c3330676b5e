"""The engine on a case's checkpoint, its runs captured, and its recorded operands fed to the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from model_case import Case
from torch import Tensor

from onerec_engine.config import Pathway
from onerec_engine.engine import Engine
from onerec_engine.reference import Emulated, OneRecV2, Operand, Quantized
from onerec_engine.reference.emulation import Scheme

__all__ = [
    "PRECISIONS",
    "SIZED_MOE",
    "SIZED_PATHWAY",
    "Fed",
    "SummedInPairs",
    "SummedInTiles",
    "captured_runs",
    "emulated",
    "open_engine",
    "sized_model",
]

PRECISIONS: dict[str, dict[str, str]] = {
    "fp32": {"precision": "fp32"},
    "bf16": {"precision": "bf16"},
    "fp8": {"quantization": "fp8"},
    "fp8_channel": {"quantization": "fp8_channel"},
}
"""Arguments of `Engine.from_checkpoint` by name; ``fp8`` has the experts' scales per block."""

SIZED_PATHWAY = Pathway(name="history", kind="items", max_tokens=20, position_embedding="recency")
SIZED_MOE: dict[str, Any] = {
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 144,
    "first_k_dense_replace": 1,
}


def sized_model(**changes: Any) -> dict[str, Any]:
    """Changes to `small_config` that make a model large enough for statistics; blocks of 128 are filled and cut."""
    return {
        "codebook_sizes": (64, 57, 257),
        "hidden_size": 256,
        "num_hidden_layers": 3,
        "head_dim": 64,
        "intermediate_size": 528,
        "embed_dim": 32,
        "num_context_kv_layers": 3,
        "context_kv_split": 2,
        "pathways": (SIZED_PATHWAY,),
    } | changes


def emulated(name: str, **settings: Any) -> Emulated:
    """The reference's arithmetic for a name of `PRECISIONS`."""
    if name.startswith("fp8"):
        return Emulated("fp8", experts="channel" if name == "fp8_channel" else "block", **settings)
    return Emulated("bf16" if name == "bf16" else "fp32", **settings)


class _SummedInOrder(Emulated):
    """BF16 with FP32 sums in an order of their own."""

    def __init__(self) -> None:
        super().__init__("bf16")

    def add_up(self, term: Callable[[int], Tensor], depth: int, total: Tensor) -> Tensor:
        """The sum of `depth` products, of which term(k) is the one at k, exact in FP32, from `total` = 0 on."""
        raise NotImplementedError

    def product(self, operand: Operand, name: str, weight: Tensor, scheme: Scheme) -> Tensor:
        """As in `Emulated`."""
        assert isinstance(operand, Tensor)
        return self._sum(operand, self.table(weight))

    def plain_linear(self, name: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """As in `Emulated`."""
        operand = self.store(x.reshape(-1, x.shape[-1]))
        total = self._sum(operand, self.table(weight)).view(*x.shape[:-1], weight.shape[0])
        return total if bias is None else total + bias.float()

    def _sum(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.add_up(lambda k: x[:, k, None] * weight[None, :, k], x.shape[1], x.new_zeros(len(x), len(weight)))


class SummedInTiles(_SummedInOrder):
    """As x86's matrix tiles do (TDPBF16PS).

    Of every 32 of K the even and the odd products are added up by themselves, then to each other, then to the sum.
    """

    DEPTH = 32

    def add_up(self, term: Callable[[int], Tensor], depth: int, total: Tensor) -> Tensor:
        """As in `_SummedInOrder`."""
        for begin in range(0, depth, self.DEPTH):
            end = min(begin + self.DEPTH, depth)
            even, odd = (
                sum((term(k) for k in range(begin + first, end, 2)), torch.zeros_like(total)) for first in (0, 1)
            )
            total = total + (even + odd)
        return total


class SummedInPairs(_SummedInOrder):
    """As x86's vectors do (VDPBF16PS): one product after the other, of two neighbours the second one first."""

    def add_up(self, term: Callable[[int], Tensor], depth: int, total: Tensor) -> Tensor:
        """As in `_SummedInOrder`."""
        for k in range(0, depth, 2):
            if k + 1 < depth:
                total = total + term(k + 1)
            total = total + term(k)
        return total


def open_engine(case: Case, directory: Path, name: str = "fp32", **settings: Any) -> Engine:
    """An engine on the CPU with one thread and the precision `name`."""
    defaults: dict[str, Any] = {"device": "cpu", "threads": 1, "max_beam_width": 128}
    return Engine.from_checkpoint(case.save(directory), **(defaults | PRECISIONS[name] | settings))


class _Spy:
    def __init__(self, core: Any) -> None:
        self.core = core
        self.batches: list[dict[str, npt.NDArray[Any]]] = []

    def run(self, batch: dict[str, npt.NDArray[Any]]) -> Any:
        self.batches.append({name: array.copy() for name, array in batch.items()})
        return self.core.run(batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.core, name)


@contextmanager
def captured_runs(engine: Engine) -> Iterator[list[dict[str, npt.NDArray[Any]]]]:
    """The batches that calls inside the block hand to the compiled core."""
    spy = _Spy(engine._core)
    engine._core = spy  # type: ignore[assignment]
    try:
        yield spy.batches
    finally:
        engine._core = spy.core


class Fed:
    """A tap that gives the reference the operands an engine recorded on the same forced batch.

    Attributes:
        differing: per linear, how many of this side's own codes (or values) differ from the engine's, of how many.
        scales: per quantised linear, the largest relative differences of each row's scales.
    """

    def __init__(
        self,
        model: OneRecV2,
        recorded: list[tuple[str, npt.NDArray[Any], npt.NDArray[np.float32]]],
        *,
        use: Callable[[str], bool] = lambda name: True,
    ) -> None:
        """Takes `Engine.score_tapped`'s record; operands of linears that `use` refuses are compared, but not fed."""
        self.model = model
        self.use = use
        self.ops: Emulated | None = None
        self.differing: dict[str, list[int]] = {}
        self.scales: dict[str, list[float]] = {}
        self._recorded: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for name, values, scales in recorded:
            pair = torch.from_numpy(values.copy()), torch.from_numpy(scales.copy())
            self._recorded.setdefault(name, []).append(pair)

    def __call__(self, name: str, step: int, own: Operand) -> Operand | None:
        values, scales = self._recorded[name][0 if name.startswith(("context.", "lm_heads.")) else step]
        if "mlp.experts." in name:
            order = self._sorted_order(name.partition(".experts.")[0], step)
            values, scales = _unsorted(values, order), _unsorted(scales, order) if scales.numel() else scales
        mine = own.codes if isinstance(own, Quantized) else own
        # Behind a row's end there may be zeros that pad it.
        assert not values[:, mine.shape[1] :].any()
        values = values[:, : mine.shape[1]].contiguous()
        count = self.differing.setdefault(name, [0, 0])
        count[0] += int((values != mine).sum())
        count[1] += values.numel()
        if isinstance(own, Quantized):
            scales = scales[:, : own.scales.shape[1]].contiguous() if own.scales.ndim == 2 else scales[:, 0]
            self.scales.setdefault(name, []).extend((scales / own.scales - 1).abs().flatten().tolist())
        if not self.use(name):
            return None
        return Quantized(values, scales) if isinstance(own, Quantized) else values

    def _sorted_order(self, prefix: str, step: int) -> torch.Tensor:
        """Which (row, choice) pair stands at each place of the engine's rows, which are sorted by expert."""
        assert self.ops is not None
        router, _ = self._recorded[f"{prefix}.gate"][step]
        mixture = next(layer for layer in self.model.moe_layers() if layer.prefix == prefix)
        tap, self.ops.tap = self.ops.tap, None
        chosen, _ = mixture.gate(router, self.ops)
        self.ops.tap = tap
        return torch.argsort(chosen.flatten(), stable=True)


def _unsorted(rows: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(rows)
    out[order] = rows
    return out
