"""Checkpoint directories: everything checked before anything is allocated, then one tensor read at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from onerec_engine._files import checkpoint_directory, checkpoint_file
from onerec_engine._json import JsonError, quote, read_json
from onerec_engine._safetensors import Entry, SafetensorsError, SafetensorsFile
from onerec_engine.config import OneRecV2Config, load_config
from onerec_engine.errors import CheckpointError
from onerec_engine.float_formats import to_float32
from onerec_engine.generation_config import GenerationDefaults, load_generation_defaults
from onerec_engine.schemes import QuantizationScheme, scheme_from_config
from onerec_engine.weights import TensorSpec, expected_tensors

__all__ = ["Checkpoint"]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PLAIN_DTYPES = ("F32", "F16", "BF16")
_MAX_SHARDS = 512
_SHOWN = 20


class Checkpoint:
    """An opened checkpoint directory, all of it checked. Not for use by several threads at once.

    Attributes:
        path: the directory.
        config: the model.
        scheme: how the weights are quantised; None for plain weights.
        generation: defaults of `generation_config.json`.
        specs: the model's tensors, without the scales of quantised ones.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Opens a directory of docs/checkpoint_format.md. The catalogue is read by `Catalogue.load`.

        Raises:
            ConfigError: for `config.json` and `generation_config.json`.
            CheckpointError: for the weights; lists every tensor that is missing, extra, misshaped or of a wrong dtype.
        """
        self.path = checkpoint_directory(path)
        self.config: OneRecV2Config = load_config(checkpoint_file(self.path, "config.json") or self.path)
        self.scheme: QuantizationScheme | None = scheme_from_config(self.config.quantization_config)
        self.generation: GenerationDefaults = load_generation_defaults(
            checkpoint_file(self.path, "generation_config.json"), self.config.levels
        )
        self.specs: list[TensorSpec] = expected_tensors(self.config)
        self._scales = _scales(self.specs, self.scheme)
        self._files: list[SafetensorsFile] = []
        self._buffer = np.empty(0, np.uint8)
        try:
            self._tensors = self._open()
            _check_tensors(self._tensors, self.specs, self._scales, self.scheme)
            self._check_values()
        except BaseException:
            self.close()
            raise

    def dtype(self, name: str) -> str:
        """The stored dtype of a tensor: F32, F16, BF16 or F8_E4M3."""
        return self._entry(name)[1].dtype

    def read(self, name: str) -> npt.NDArray[np.uint8]:
        """A tensor's bytes, in memory that the next `read` overwrites.

        Raises:
            CheckpointError: if the file has shrunk since it was opened.
        """
        size = self._entry(name)[1].size
        if self._buffer.size < size:
            # At once for the largest: growing step by step would leave the discarded ones in the heap.
            self._buffer = np.empty(max(entry.size for _, entry in self._tensors.values()), np.uint8)
        out = self._buffer[:size]
        self._read_into(name, out)
        return out

    def read_scales(self, name: str) -> npt.NDArray[np.float32] | None:
        """The scales of weight `name`, float32; None where it is not quantised."""
        spec = self._scales.get(name)
        if spec is None:
            return None
        out = np.empty(spec.shape, np.float32)
        self._read_into(spec.name, out.reshape(-1).view(np.uint8))
        return out

    def read_float32(self, name: str) -> npt.NDArray[np.float32]:
        """A tensor's values in memory of its own, codes multiplied by their scales."""
        entry = self._entry(name)[1]
        return to_float32(self.read(name), entry.dtype, entry.shape, self.read_scales(name))

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.size for _, entry in self._tensors.values())

    @property
    def scales(self) -> dict[str, TensorSpec]:
        """The scales of each quantised weight, by the weight's name."""
        return dict(self._scales)

    def close(self) -> None:
        """Closes the files and drops the buffer."""
        for file in self._files:
            file.close()
        self._buffer = np.empty(0, np.uint8)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _entry(self, name: str) -> tuple[SafetensorsFile, Entry]:
        found = self._tensors.get(name)
        if found is None:
            raise KeyError(f"[checkpoint] got {quote(name)}, want the name of a tensor of this checkpoint.")
        return found

    def _read_into(self, name: str, out: npt.NDArray[np.uint8]) -> None:
        file, entry = self._entry(name)
        try:
            file.read_into(entry, out)
        except SafetensorsError as error:
            raise CheckpointError(f"[checkpoint] {file.path.name} {error}. It changed while it was read.") from None

    def _open(self) -> dict[str, tuple[SafetensorsFile, Entry]]:
        """Opens the weights' files and checks that index and files agree."""
        single, index = checkpoint_file(self.path, WEIGHTS), checkpoint_file(self.path, INDEX)
        if single is not None and index is not None:
            raise CheckpointError(f"[checkpoint] found both {WEIGHTS} and {INDEX}, want one. Remove the stale one.")
        if single is None and index is None:
            raise CheckpointError(f"[checkpoint] found neither {WEIGHTS} nor {INDEX} in {self.path}. Add the weights.")
        weight_map = None if index is None else _weight_map(index)
        names = [WEIGHTS] if weight_map is None else sorted(set(weight_map.values()))
        if len(names) > _MAX_SHARDS:
            raise CheckpointError(f"[checkpoint] {INDEX} names {len(names)} shards, want at most {_MAX_SHARDS}.")
        # Names are as long as pathways and fields make them; a header has no reason to be much longer.
        limit = (1 << 20) + 1024 * (len(self.specs) + len(self._scales))
        problems: list[str] = []
        tensors: dict[str, tuple[SafetensorsFile, Entry]] = {}
        for name in names:
            path = checkpoint_file(self.path, name)
            if path is None:
                problems.append(f"{quote(name)} is missing")
                continue
            try:
                file = SafetensorsFile(path, max_header_bytes=limit)
                self._files.append(file)
                _second_opinion(file)
            except SafetensorsError as error:
                problems.extend(f"{name} {problem}" for problem in error.problems)
                continue
            if weight_map is not None:
                problems.extend(_index_problems(name, file, weight_map))
            tensors.update({tensor: (file, entry) for tensor, entry in file.entries.items()})
        if problems:
            raise CheckpointError(f"[checkpoint] {_some(problems, '; ')}. Copy the files again.")
        return tensors

    def _check_values(self) -> None:
        """Norm gains, biases and scales are finite; scales are positive."""
        problems = []
        scales = {spec.name for spec in self._scales.values()}
        for name in [*(spec.name for spec in self.specs if spec.kind == "vector"), *scales]:
            values = self.read_float32(name)
            if not np.isfinite(values).all():
                problems.append(f"{quote(name)} holds NaN or infinities")
            elif name in scales and not (values > 0).all():
                problems.append(f"{quote(name)} holds scales that are not positive")
        if problems:
            raise CheckpointError(f"[checkpoint] {_some(sorted(problems), '; ')}. Export the weights again.")


def _scales(specs: Sequence[TensorSpec], scheme: QuantizationScheme | None) -> dict[str, TensorSpec]:
    if scheme is None:
        return {}
    found = ((spec.name, scheme.scales_spec(spec)) for spec in specs)
    return {name: scales for name, scales in found if scales is not None}


def _weight_map(index: Path) -> dict[str, str]:
    try:
        raw: Any = read_json(index)
    except (JsonError, FileNotFoundError) as error:
        raise CheckpointError(f"[checkpoint] {INDEX} {error}. Copy the file again.") from None
    weight_map = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"[checkpoint] {INDEX} has no weight_map of names to files. Write the index again.")
    return weight_map


def _index_problems(name: str, file: SafetensorsFile, weight_map: dict[str, str]) -> list[str]:
    absent = [t for t, shard in weight_map.items() if shard == name and t not in file.entries]
    foreign = [t for t in file.entries if weight_map.get(t) != name]
    problems = []
    if absent:
        problems.append(f"{name} lacks the tensors {_some(absent)} that the index places there")
    if foreign:
        problems.append(f"{name} holds the tensors {_some(foreign)} that the index does not place there")
    return problems


def _second_opinion(file: SafetensorsFile) -> None:
    """What the safetensors package itself refuses, nobody else will be able to read."""
    try:
        with safe_open(file.path, framework="numpy") as other:
            if set(other.keys()) == set(file.entries):
                return
    except (SafetensorError, OSError, ValueError) as error:
        raise SafetensorsError(f"is refused by safetensors: {error}") from None
    raise SafetensorsError("is read differently by safetensors")


def _check_tensors(
    tensors: dict[str, tuple[SafetensorsFile, Entry]],
    specs: Sequence[TensorSpec],
    scales: dict[str, TensorSpec],
    scheme: QuantizationScheme | None,
) -> None:
    """Names, shapes and dtypes, all problems in one error."""
    want: dict[str, tuple[tuple[int, ...], Sequence[str]]] = {}
    for spec in specs:
        coded = scheme is not None and spec.name in scales
        want[spec.name] = (spec.shape, (scheme.dtype,) if coded and scheme is not None else PLAIN_DTYPES)
    want |= {spec.name: (spec.shape, ("F32",)) for spec in scales.values()}
    missing = [name for name in want if name not in tensors]
    extra = [name for name in tensors if name not in want]
    shapes, dtypes = [], []
    for name, (shape, allowed) in want.items():
        if name not in tensors:
            continue
        entry = tensors[name][1]
        if entry.shape != shape:
            shapes.append(f"{name} {list(entry.shape)}, want {list(shape)}")
        if entry.dtype not in allowed:
            dtypes.append(f"{name} {entry.dtype}, want {' or '.join(allowed)}")
    found = [("missing", missing), ("not in this model", extra), ("wrong shape", shapes), ("wrong dtype", dtypes)]
    problems = [f"{what}: {_some(names)}" for what, names in found if names]
    if problems:
        raise CheckpointError(f"[checkpoint] tensors {'; '.join(problems)}. Correct config.json or the weights.")


def _some(names: Sequence[str], separator: str = ", ") -> str:
    """The first few names (or, with another separator, problems), each cut to a length that no sound one has."""
    limit = 300 if separator == ", " else 3000
    shown = separator.join(name if len(name) <= limit else f"{name[: limit - 3]}..." for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown}{separator}and {len(names) - _SHOWN} more"
