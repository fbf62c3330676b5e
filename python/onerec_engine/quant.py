"""Pre-quantised checkpoints."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onerec_engine._safetensors import write_safetensors
from onerec_engine.catalogue import FILES as CATALOGUE_FILES
from onerec_engine.checkpoint import INDEX, WEIGHTS, Checkpoint
from onerec_engine.errors import CheckpointError
from onerec_engine.schemes import (
    QuantizationScheme,
    get_scheme,
    register,
    scheme_from_config,
    scheme_names,
)
from onerec_engine.weights import DTYPE_BYTES, TensorSpec

__all__ = [
    "QuantizationScheme",
    "get_scheme",
    "quantize_checkpoint",
    "register",
    "scheme_from_config",
    "scheme_names",
]

SHARD_BYTES = 4 << 30
_COPIED = (*CATALOGUE_FILES, "generation_config.json", "example_requests.jsonl")

Progress = Callable[[int, int], object]


def quantize_checkpoint(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    scheme: str = "fp8",
    progress: Progress | None = None,
) -> None:
    """Writes a checkpoint whose weights are quantised; it gives the answers that quantising while loading gives.

    What a scheme leaves alone is copied bit by bit. One tensor at a time is held in memory. `config.json` is written
    last, so that a directory left by an interrupted call does not load.

    Args:
        source: a checkpoint with plain weights.
        destination: a directory that does not exist or is empty.
        scheme: a name of `scheme_names`.
        progress: called with the tensors done and their total.

    Raises:
        ValueError: for an unknown scheme or a destination that holds something.
        ConfigError: for the source's configuration.
        CheckpointError: if the source is damaged, quantised already, or has weights that are not finite.
    """
    chosen = get_scheme(scheme)
    target = Path(destination)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"[quantize] {target} exists and is not an empty directory. Name another.")
    with Checkpoint(source) as checkpoint:
        if checkpoint.scheme is not None:
            raise CheckpointError(
                f"[quantize] got a checkpoint quantised with {checkpoint.scheme.name!r}. Quantise the original one."
            )
        target.mkdir(parents=True, exist_ok=True)
        shards = _shards(checkpoint, chosen)
        names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
        report = _Counter(len(checkpoint.specs), progress)
        weight_map: dict[str, str] = {}
        for name, specs in zip([WEIGHTS] if len(shards) == 1 else names, shards, strict=True):
            outputs: dict[str, tuple[str, tuple[int, ...]]] = {}
            for spec in specs:
                outputs |= _outputs(checkpoint, chosen, spec)
            write_safetensors(target / name, outputs, _values(checkpoint, chosen, specs, report), {"format": "pt"})
            weight_map |= dict.fromkeys(outputs, name)
        if len(shards) > 1:
            _write_json(target / INDEX, {"metadata": {}, "weight_map": weight_map})
        for extra in _COPIED:
            if (checkpoint.path / extra).is_file():
                shutil.copyfile(checkpoint.path / extra, target / extra)
        _write_json(target / "config.json", checkpoint.config.to_dict() | {"quantization_config": chosen.to_config()})


class _Counter:
    """Calls `progress` once per tensor."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def step(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)


def _outputs(
    checkpoint: Checkpoint, scheme: QuantizationScheme, spec: TensorSpec
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of what a tensor becomes, by name."""
    scales = scheme.scales_spec(spec)
    if scales is None:
        return {spec.name: (checkpoint.dtype(spec.name), spec.shape)}
    return {spec.name: (scheme.dtype, spec.shape), scales.name: ("F32", scales.shape)}


def _shards(checkpoint: Checkpoint, scheme: QuantizationScheme) -> list[list[TensorSpec]]:
    """The tensors in files of a moderate size."""
    shards: list[list[TensorSpec]] = [[]]
    used = 0
    for spec in checkpoint.specs:
        outputs = _outputs(checkpoint, scheme, spec)
        size = sum(math.prod(shape) * DTYPE_BYTES[dtype] for dtype, shape in outputs.values())
        if shards[-1] and used + size > SHARD_BYTES:
            shards.append([])
            used = 0
        shards[-1].append(spec)
        used += size
    return shards


def _values(
    checkpoint: Checkpoint, scheme: QuantizationScheme, specs: list[TensorSpec], report: _Counter
) -> Iterator[tuple[str, npt.NDArray[np.uint8]]]:
    for spec in specs:
        spec_of_scales = scheme.scales_spec(spec)
        if spec_of_scales is None:
            yield spec.name, checkpoint.read(spec.name)
        else:
            values = checkpoint.read_float32(spec.name)
            if not np.isfinite(values).all():
                raise CheckpointError(f"[quantize] {spec.name} holds NaN or infinities. Export the weights again.")
            codes, scales = scheme.quantize(spec, values)
            yield spec.name, codes.reshape(-1)
            yield spec_of_scales.name, scales.reshape(-1).view(np.uint8)
        report.step()


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
