"""Models of random weights, made in memory tensor by tensor: no checkpoint is written, no copy is held."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from op_bench.baselines import BLOCK, quantize_rows, quantize_weight_blocks
from torch import Tensor
from workloads import random_catalogue

from onerec_engine._C import Core
from onerec_engine._loading import Loaded, Numbers, usable_threads
from onerec_engine._native import use_matrix_library
from onerec_engine._schedule import Limits
from onerec_engine.catalogue import Catalogue
from onerec_engine.config import OneRecV2Config
from onerec_engine.engine import Engine
from onerec_engine.generation_config import GenerationDefaults
from onerec_engine.reference.checkpoint import random_tensor
from onerec_engine.schemes import get_scheme
from onerec_engine.weights import expected_tensors

__all__ = ["RandomEngine", "RandomWeights", "core_batch", "random_items"]

Arrays = dict[str, np.ndarray[Any, Any]]


class RandomWeights:
    """Weights by name, made anew at every call: BF16 values that depend on seed, name and device alone."""

    def __init__(self, config: OneRecV2Config, device: str, seed: int = 0) -> None:
        self.config = config
        self.device = device
        self._seed = seed
        self._shapes = {spec.name: spec.shape for spec in expected_tensors(config)}

    def __call__(self, name: str) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(zlib.crc32(name.encode()) ^ self._seed)
        return random_tensor(self.config, name, self._shapes[name], generator).bfloat16()


@dataclass(frozen=True)
class RandomEngine:
    """An engine and the core inside it, which runs prepared batches."""

    engine: Engine
    core: Core

    @staticmethod
    def load(
        weights: RandomWeights,
        precision: str,
        device: str,
        *,
        requests: int,
        beams: int,
        items: int = 200_000,
        threads: int | None = None,
        fused: bool = True,
        overlapped: bool = True,
    ) -> RandomEngine:
        """Fills a new engine with weights.

        Args:
            weights: of which model.
            precision: "fp32", "bf16" or "fp8".
            device: "cpu" or "cuda".
            requests: the largest batch; one run holds it with full contexts.
            beams: the widest beam.
            items: of a random catalogue.
            threads: of a CPU; by default all that the process may use.
            fused: whether kernels may do several ops at once.
            overlapped: whether a kernel may start before the one ahead of it has ended.
        """
        config = weights.config
        scheme = get_scheme("fp8") if precision == "fp8" else None
        catalogue = Catalogue(
            np.arange(items), random_catalogue(config.codebook_sizes, items), codebook_sizes=config.codebook_sizes
        )
        limits = Limits(
            max_batch=requests,
            max_rows=requests * beams,
            max_context_tokens=requests * config.max_context,
            max_excluded=items,
        )
        threads = threads or usable_threads()
        use_matrix_library()
        core = Core(
            config.to_dict(),
            precision=precision,
            experts="block",
            device=device,
            threads=threads,
            max_batch=limits.max_batch,
            max_rows=limits.max_rows,
            max_context_tokens=limits.max_context_tokens,
            max_excluded=limits.max_excluded,
            memory_limit=0,
            fused=fused,
            overlapped=overlapped,
        )
        for name, _, kind in core.tensors():
            values, scales, dtype = _stored(weights(name), kind)
            raw = values.contiguous().view(torch.uint8).flatten().cpu().numpy()
            core.set_tensor(name, raw, dtype, None if scales is None else scales.cpu().numpy())
        core.finish_loading()
        loaded = Loaded(
            core=core,
            config=config,
            catalogue=catalogue,
            generation=GenerationDefaults(),
            numbers=Numbers(precision=precision, scheme=scheme),
            device=device,
            threads=threads,
            limits=limits,
            max_beam_width=beams,
            max_context=config.max_context,
        )
        return RandomEngine(Engine(loaded), core)


def _stored(value: Tensor, kind: str) -> tuple[Tensor, Tensor | None, str]:
    """A tensor as the core takes it fastest: codes where it multiplies codes, else BF16."""
    if kind == "linear_fp8_channel":
        return *quantize_rows(value), "F8_E4M3"
    if kind == "linear_fp8_block" and not any(size % BLOCK for size in value.shape):
        codes, scales = quantize_weight_blocks(value.unsqueeze(0))
        return codes[0], scales[0], "F8_E4M3"
    return value, None, "BF16"


def random_items(catalogue: Catalogue, requests: int, context: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Histories of `context` items each, as rows of the catalogue, which are its item ids too: [requests, context]."""
    return np.random.default_rng(seed).integers(0, len(catalogue), (requests, context))


def core_batch(config: OneRecV2Config, codes: np.ndarray[Any, Any], widths: list[int], *, constrained: bool) -> Arrays:
    """What `Core.run` takes: one pathway of items without further fields, contexts of one length.

    Args:
        config: the model.
        codes: [requests, context, levels], oldest first.
        widths: beams kept after each level.
        constrained: whether only items of the catalogue are searched.
    """
    (pathway,) = config.pathways
    requests, context, levels = codes.shape
    tokens = requests * context
    newest_first = np.tile(np.arange(context)[::-1], requests)
    return {
        "context_offsets": (np.arange(requests + 1) * context).astype(np.int32),
        "widths": np.tile(np.array(widths, np.int32), (requests, 1)),
        "constrained": np.full(requests, constrained, np.uint8),
        "excluded": np.empty(0, np.int32),
        "excluded_offsets": np.zeros(requests + 1, np.int32),
        f"{pathway.name}.codes": np.ascontiguousarray(codes.reshape(tokens, levels), np.int32),
        f"{pathway.name}.positions": newest_first.astype(np.int32),
        f"{pathway.name}.rows": np.arange(tokens, dtype=np.int32),
        f"{pathway.name}.categorical": np.empty((tokens, 0), np.int32),
        f"{pathway.name}.dense": np.empty((tokens, 0), np.float32),
    }
