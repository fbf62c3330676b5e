"""A checkpoint's tensors into a new core."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onerec_engine._config_checks import is_int
from onerec_engine._files import available_memory
from onerec_engine._native import build_info, use_matrix_library
from onerec_engine._schedule import Limits
from onerec_engine.batching import context_limits
from onerec_engine.catalogue import Catalogue
from onerec_engine.checkpoint import Checkpoint
from onerec_engine.config import OneRecV2Config
from onerec_engine.errors import EngineError, OutOfMemoryPlanError
from onerec_engine.generation_config import GenerationDefaults
from onerec_engine.schemes import QuantizationScheme, get_scheme

if TYPE_CHECKING:
    from onerec_engine._C import Core

__all__ = ["Loaded", "Numbers", "choose_device", "choose_limits", "choose_numbers", "load", "usable_threads"]

PRECISIONS = ("fp32", "bf16")
_RUN_ROWS = {"cpu": 4096, "cuda": 32_768}
_RUN_TOKENS = 32_768
_RUN_EXCLUDED = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """How an engine stores and multiplies.

    Attributes:
        precision: ``fp32``, ``bf16`` or ``fp8``, as docs/numerics.md defines them.
        scheme: how its weights are quantised; None if they are not.
    """

    precision: str
    scheme: QuantizationScheme | None


def _check_counts(**counts: int | None) -> None:
    """Refuses counts that are neither None nor positive integers.

    Raises:
        ValueError: naming the argument.
    """
    for name, count in counts.items():
        if count is not None and not is_int(count, 1, 1 << (62 if name == "memory_limit" else 24)):
            raise ValueError(f"[engine] got {name} {count!r}, want a positive integer.")


def choose_limits(
    *, max_batch: int, max_beam_width: int, max_rows: int | None, context: int, items: int, device: str
) -> Limits:
    """What one run holds.

    Args:
        max_batch: requests.
        max_beam_width: of one request.
        max_rows: of all requests; None for a number from which on more rows do not make a row cheaper.
        context: tokens of one request.
        items: of the catalogue; one request may exclude all.
        device: ``cpu`` or ``cuda``.

    Raises:
        ValueError: if the rows do not suffice for one request of the widest beam, or one row per request.
    """
    if max_rows is not None and max_rows < max(max_batch, max_beam_width):
        raise ValueError(f"[engine] got max_rows {max_rows}, want at least max_batch and max_beam_width.")
    return Limits(
        max_batch=max_batch,
        max_rows=max_rows or max(max_beam_width, max_batch, min(max_batch * max_beam_width, _RUN_ROWS[device])),
        max_context_tokens=max(context, min(max_batch * context, _RUN_TOKENS)),
        max_excluded=max(items, _RUN_EXCLUDED),
    )


def choose_numbers(
    stored: QuantizationScheme | None, quantization: str | None, precision: str | None, device: str
) -> Numbers:
    """The precision of an engine from what its caller asks for and what its checkpoint holds.

    Args:
        stored: how the checkpoint is quantised.
        quantization: asked for; None takes the checkpoint as it is.
        precision: asked for; None is fp32 on a CPU, where 16 bits save nothing in accuracy, and bf16 on a GPU.
        device: ``cpu`` or ``cuda``.

    Raises:
        ValueError: if the two do not go together or do not fit the checkpoint.
    """
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(f"[engine] got precision {precision!r}, want None or one of {list(PRECISIONS)}.")
    scheme = stored if quantization is None else get_scheme(quantization)
    if stored is not None and scheme is not stored:
        raise ValueError(
            f"[engine] got quantization {quantization!r} for a checkpoint quantised with {stored.name!r}. "
            "Leave it out, or quantise the original checkpoint."
        )
    if scheme is None:
        return Numbers(precision=precision or ("fp32" if device == "cpu" else "bf16"), scheme=None)
    if precision is not None and not (precision == "bf16" and quantization is not None):
        raise ValueError(
            f"[engine] got precision {precision!r} with quantisation {scheme.name!r}, which keeps the rest in bf16. "
            "Leave one of them out."
        )
    return Numbers(precision=scheme.precision, scheme=scheme)


def choose_device(device: str) -> str:
    """``auto`` is ``cuda`` where this build and machine have it, else ``cpu``.

    Raises:
        ValueError: for an unknown name.
        EngineError: if the device cannot be had, with the reason.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"[engine] got device {device!r}, want 'auto', 'cpu' or 'cuda'.")
    cuda = build_info().get("cuda", "off: not in this build")
    if device == "cuda" and cuda.startswith("off"):
        raise EngineError(f"[engine] got device 'cuda', but it is {cuda}. Use device='cpu'.")
    return ("cpu" if cuda.startswith("off") else "cuda") if device == "auto" else device


def usable_threads() -> int:
    """Processors this process may use: its affinity mask, cut to its control group's share of time."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        count = min(count, max(1, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError, ZeroDivisionError):
        pass
    return count


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A core with its weights, and what it was made from. Fields as in `Engine`."""

    core: Core
    config: OneRecV2Config
    catalogue: Catalogue
    generation: GenerationDefaults
    numbers: Numbers
    device: str
    threads: int
    limits: Limits
    max_beam_width: int
    max_context: int


def load(
    path: str | os.PathLike[str],
    *,
    device: str,
    quantization: str | None,
    precision: str | None,
    threads: int | None,
    max_batch: int,
    max_beam_width: int,
    max_context: int | None,
    max_rows: int | None,
    memory_limit: int | None,
) -> Loaded:
    """Checks a checkpoint and loads it into a new core; arguments and errors as in `Engine.from_checkpoint`."""
    _check_counts(
        max_batch=max_batch,
        max_beam_width=max_beam_width,
        max_context=max_context,
        max_rows=max_rows,
        threads=threads,
        memory_limit=memory_limit,
    )
    device = choose_device(device)
    with Checkpoint(path) as checkpoint:
        config = checkpoint.config
        numbers = choose_numbers(checkpoint.scheme, quantization, precision, device)
        catalogue = Catalogue.load(checkpoint.path, codebook_sizes=config.codebook_sizes)
        context = min(max_context or config.max_context, config.max_context)
        context_limits(config.pathways, context)
        limits = choose_limits(
            max_batch=max_batch,
            max_beam_width=max_beam_width,
            max_rows=max_rows,
            context=context,
            items=len(catalogue),
            device=device,
        )
        count = threads or usable_threads()
        return Loaded(
            core=_load_core(checkpoint, numbers, device, count, limits, memory_limit),
            config=config,
            catalogue=catalogue,
            generation=checkpoint.generation,
            numbers=numbers,
            device=device,
            threads=count,
            limits=limits,
            max_beam_width=max_beam_width,
            max_context=context,
        )


def _load_core(
    checkpoint: Checkpoint, numbers: Numbers, device: str, threads: int, limits: Limits, memory_limit: int | None
) -> Core:
    from onerec_engine._C import Core

    use_matrix_library()
    core = Core(
        checkpoint.config.to_dict(),
        precision=numbers.precision,
        experts=numbers.scheme.experts if numbers.scheme else "block",
        device=device,
        threads=threads,
        max_batch=limits.max_batch,
        max_rows=limits.max_rows,
        max_context_tokens=limits.max_context_tokens,
        max_excluded=limits.max_excluded,
        memory_limit=memory_limit or 0,
    )
    try:
        wanted = core.tensors()
        if device == "cpu" or memory_limit is not None:
            _check_memory(wanted, numbers.precision, memory_limit)
        for name, _, _ in wanted:
            core.set_tensor(name, checkpoint.read(name), checkpoint.dtype(name), checkpoint.read_scales(name))
        core.finish_loading()
    except BaseException:
        core.close()
        raise
    return core


def _check_memory(wanted: list[tuple[str, tuple[int, ...], str]], precision: str, memory_limit: int | None) -> None:
    """A lower bound of what the weights take against what there is."""
    width = {"vector": 4, "linear_fp8_channel": 1, "linear_fp8_block": 1}
    plain = 4 if precision == "fp32" else 2
    need = sum(math.prod(shape) * width.get(kind, plain) for _, shape, kind in wanted)
    free = available_memory() if memory_limit is None else memory_limit
    if need > free:
        what = "are free" if memory_limit is None else "memory_limit allows"
        raise OutOfMemoryPlanError(
            f"[engine] the weights need at least {need / 2**20:.1f} MiB in {precision}, {free / 2**20:.1f} MiB {what}. "
            "Use a narrower precision, a smaller model or a machine with more memory."
        )
