"""A case: one op at one shape, and everybody who can compute it. Each is checked first, then timed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from gpu_timer import Timer, rotations
from op_runner import Ops
from torch import Tensor

from onerec_engine.errors import DeviceError

__all__ = ["ALIGN", "HEADERS", "Bench", "Case", "Contestant", "Entry", "Row", "row_error", "sample_rows"]

WEIGHT_ROTATION = 128 * 2**20
_KEPT = 16 * 2**30

# What torch raises when the device has failed; there is nothing to be measured after that.
_LOST: tuple[type[BaseException], ...] = (
    getattr(torch, "AcceleratorError", KeyboardInterrupt),
    DeviceError,
)


@dataclass(frozen=True)
class Contestant:
    """Somebody's way to compute a case.

    Attributes:
        calls: the work on each set of buffers, to be rotated.
        error: the relative error of what the first call left; None where another line checks the same.
        limit: the largest error allowed; None reports the error alone.
    """

    calls: Sequence[Callable[[], object]]
    error: Callable[[], float] | None = None
    limit: float | None = None


@dataclass(frozen=True)
class Entry:
    """A contestant yet to be made. Whatever `make` or its calls raise makes it absent, and the table says why."""

    name: str
    make: Callable[[], Contestant]
    ours: bool = False


@dataclass(frozen=True)
class Case:
    """One op at one shape.

    Attributes:
        model, op, rows, shape: what it is.
        flops: of one call.
        bytes: read and written by one call, each tensor once.
        unit: the ceiling that it is held against: "copy", "bf16", "fp8" or "attention".
        entries: who competes; ours come first.
    """

    model: str
    op: str
    rows: int
    shape: str
    flops: float
    bytes: float
    unit: str
    entries: Sequence[Entry]


@dataclass
class Row:
    """One contestant at one case, as it goes into the table and the JSON file."""

    model: str
    op: str
    rows: int
    shape: str
    contestant: str
    unit: str
    flops: float
    bytes: float
    seconds: float | None = None
    share: float | None = None
    against_ours: float | None = None
    error: float | None = None
    limit: float | None = None
    ok: bool | None = None
    note: str = ""

    @property
    def rate(self) -> str:
        if self.seconds is None:
            return ""
        if self.unit == "copy":
            return f"{self.bytes / self.seconds / 1e9:.0f} GB/s"
        return f"{self.flops / self.seconds / 1e12:.1f} TFLOP/s"

    def cells(self) -> list[str]:
        """The row for people."""
        outcome = self.note if self.seconds is None else {True: "ok", False: "WRONG", None: ""}[self.ok]
        return [
            self.model,
            self.op,
            str(self.rows),
            self.shape,
            self.contestant,
            "" if self.seconds is None else f"{1e6 * self.seconds:.1f}",
            self.rate,
            "" if self.share is None else f"{self.share:.0%}",
            "" if self.against_ours is None else f"{self.against_ours:.2f}x",
            "" if self.error is None else f"{self.error:.1e}",
            outcome,
        ]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Failure:
    """What ended a series of cases, and whether the device went with it."""

    what: str
    lost: bool


HEADERS = ["model", "op", "rows", "shape", "by", "us", "rate", "of ceiling", "time / ours", "error", ""]
ALIGN = "<<><<>>>>><"


@dataclass
class Bench:
    """What cases are made and measured with.

    Attributes:
        ops: the engine's ops.
        timer: how times are taken.
        ceilings: what the machine reaches: bytes or operations per second by unit.
        deadline: when to stop, by time.monotonic().
        l2_bytes: of the device; buffers are rotated over twice as much.
        compiled: whether baselines may use torch.compile.
    """

    ops: Ops
    timer: Timer
    ceilings: dict[str, float]
    deadline: float
    l2_bytes: int = 0
    compiled: bool = False
    rows: list[Row] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    @property
    def device(self) -> str:
        return self.ops.device.type

    def sets(self, bytes_per_call: float) -> int:
        """Sets of buffers for activations: over twice the L2 cache; one on a CPU."""
        return rotations(bytes_per_call, 2 * self.l2_bytes, 32)

    def weight_sets(self, weight_bytes: float) -> int:
        return rotations(weight_bytes, WEIGHT_ROTATION if self.l2_bytes else 0)

    def run(self, cases: Iterable[Case]) -> None:
        """Measures cases until the time is over. A case that cannot be made ends them; so does a lost device."""
        if self.failures and self.failures[-1].lost:
            return
        try:
            for case in cases:
                if time.monotonic() > self.deadline:
                    self.left_out.append(f"{case.model} {case.op} {case.rows}")
                    continue
                self._tidy()
                for row in self.measure(case):
                    self.rows.append(row)
                    print("  ".join(cell for cell in row.cells() if cell), file=sys.stderr, flush=True)
        except Exception as reason:
            self.failures.append(Failure(_one_line(reason), isinstance(reason, _LOST)))
            print(f"FAILED: {self.failures[-1].what}", file=sys.stderr, flush=True)

    def _tidy(self) -> None:
        """Gives back what torch keeps of graphs that are gone: the engine's ops allocate beside it."""
        if self.device == "cuda" and torch.cuda.memory_reserved() > _KEPT:
            torch.cuda.empty_cache()

    def measure(self, case: Case) -> list[Row]:
        """Checks and times everybody at a case."""
        rows: list[Row] = []
        ours: float | None = None
        for entry in case.entries:
            row = Row(case.model, case.op, case.rows, case.shape, entry.name, case.unit, case.flops, case.bytes)
            rows.append(row)
            try:
                row.seconds = self._compete(entry, case, row)
            except _LOST:
                raise
            except Exception as reason:
                # A baseline may be missing; we may not.
                row.note, row.ok = f"absent: {_one_line(reason)}", False if entry.ours else None
                continue
            if entry.ours and ours is None:
                ours = row.seconds
            if not entry.ours and ours is not None:
                row.against_ours = row.seconds / ours
            ceiling = self.ceilings.get(case.unit)
            if ceiling:
                row.share = (case.bytes if case.unit == "copy" else case.flops) / row.seconds / ceiling
        return rows

    def _compete(self, entry: Entry, case: Case, row: Row) -> float:
        contestant = entry.make()
        if entry.ours:
            self.ops.runner.poison(0xFF)
            self.ops.now(lambda: _call(contestant.calls[0]))
        else:
            contestant.calls[0]()
            self.ops.wait_for_torch()
        if contestant.error is not None:
            row.error, row.limit = contestant.error(), contestant.limit
            row.ok = None if row.limit is None else row.error <= row.limit
        floor = max(case.flops / 2e15, case.bytes / 1e13)
        if entry.ours:
            return self.timer.ours(self.ops, contestant.calls, floor)
        return self.timer.torch(contestant.calls, floor)


def row_error(got: Tensor, rows: Tensor, want: Tensor) -> float:
    """||got - want|| / ||want|| of some rows in double precision; infinite if anything in `got` is not finite."""
    if not bool(torch.isfinite(got).all()):
        return float("inf")
    return float((got[rows].double() - want.double()).norm() / want.double().norm().clamp(min=1e-300))


def sample_rows(rows: int, device: torch.device | str, most: int = 512) -> Tensor:
    """Row numbers to compare: all, or the first, the last and random ones between."""
    if rows <= most:
        return torch.arange(rows, device=device)
    chosen = torch.randperm(rows, device=device)[:most]
    chosen[0], chosen[1] = 0, rows - 1
    return chosen.sort().values


def _one_line(reason: BaseException) -> str:
    text = str(reason).strip().splitlines()
    return f"{type(reason).__name__}: {text[0][:160]}" if text else type(reason).__name__


def _call(call: Callable[[], object]) -> None:
    call()
