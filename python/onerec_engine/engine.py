"""The engine: a loaded checkpoint that generates and scores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onerec_engine._arrays import Arrays
from onerec_engine._columns import Columns, Schema, Settings
from onerec_engine._expansion import Found, collect, expand, want_finite
from onerec_engine._loading import Loaded, load
from onerec_engine._memory import largest_batch, parts, uniform_batch
from onerec_engine._schedule import schedule
from onerec_engine._scoring import read_candidates, split_candidates
from onerec_engine._trie_index import TrieIndex
from onerec_engine._usage import Usage
from onerec_engine.batching import context_limits, make_packer, pack, read_batch
from onerec_engine.request import Request
from onerec_engine.result import BatchResult, Recommendation, Result

if TYPE_CHECKING:
    from onerec_engine._C import PackedRequests

__all__ = ["BatchResult", "Engine", "Recommendation", "Request", "Result"]

DEFAULT_BEAM_WIDTH = 64
DEFAULT_NUM_RESULTS = 10

Batch = Iterable[Request] | Mapping[str, Any]


class Engine:
    """A OneRec-V2 model on a device, with its catalogue. Made by `from_checkpoint`.

    Any number of threads may call it; their calls give the answers they would give one after another. Calls release the
    GIL while they compute.

    Attributes:
        config: the model.
        catalogue: its items.
        device: ``cpu`` or ``cuda``.
        precision: ``fp32``, ``bf16`` or ``fp8``.
        quantization: name of the scheme the weights are quantised with, or None.
        threads: CPU threads a call computes with.
        limits: what one run holds; larger calls are cut into several.
        max_beam_width: the widest beam a request may ask for.
        max_context: the most context tokens a request uses.
    """

    def __init__(self, loaded: Loaded) -> None:
        """Takes over a loaded core. Use `from_checkpoint`."""
        core, config, limit = loaded.core, loaded.config, loaded.max_beam_width
        self.config = config
        self.catalogue = loaded.catalogue
        self.device = loaded.device
        self.precision = loaded.numbers.precision
        self.quantization = None if loaded.numbers.scheme is None else loaded.numbers.scheme.name
        self.threads = loaded.threads
        self.limits = loaded.limits
        self.max_beam_width = limit
        self.max_context = loaded.max_context
        self._usage = Usage()
        self._core = core
        self._schema = Schema.of(config)
        self._context_limits = context_limits(config.pathways, loaded.max_context)
        self._trie = TrieIndex(self.catalogue, core.set_catalogue(self.catalogue.semantic_ids), core.leaf_items())
        self._packer = make_packer(config, self._trie, self._context_limits)
        widths = loaded.generation.beam_width or (DEFAULT_BEAM_WIDTH,) * config.levels
        self._settings = Settings(
            widths=tuple(min(width, limit) for width in widths),
            num_results=None,
            default_results=loaded.generation.num_results or DEFAULT_NUM_RESULTS,
            constrained=True,
            exclude_history=False,
            max_beam_width=limit,
        )

    @staticmethod
    def from_checkpoint(
        path: str | os.PathLike[str],
        *,
        device: str = "auto",
        quantization: str | None = None,
        precision: str | None = None,
        threads: int | None = None,
        max_batch: int = 64,
        max_beam_width: int = 1024,
        max_context: int | None = None,
        max_rows: int | None = None,
        memory_limit: int | None = None,
        warmup: Sequence[int] = (),
    ) -> Engine:
        """Loads a checkpoint directory (docs/checkpoint_format.md). Everything is checked before anything is allocated.

        Args:
            path: the directory.
            device: ``cpu``, ``cuda``, or ``auto``: a GPU where this build and machine have one.
            quantization: ``fp8`` (the paper's scheme) or ``fp8_channel`` quantise the weights while loading; None takes
                them as they are, which for a pre-quantised checkpoint is quantised.
            precision: ``fp32`` or ``bf16``, of weights and activations where nothing is quantised. By default fp32 on a
                CPU and bf16 on a GPU, whatever the checkpoint stores.
            threads: CPU threads; by default the processors this process may use.
            max_batch: requests computed at a time. Calls may have any number.
            max_beam_width: the widest beam at any level.
            max_context: context tokens of a request; by default what the model's pathways hold. If less, the longest
                pathways keep fewer of their newest tokens.
            max_rows: beams of all requests computed at a time, by default 4096 on a CPU and 32,768 on a GPU, or one
                request's.
            memory_limit: bytes that weights, catalogue and the largest run may take; by default what is free.
            warmup: numbers of requests whose plans (on a GPU: CUDA graphs) are recorded before this returns, each with
                a full context and the default beam; others are recorded when they first occur. See `warm_up`.

        Raises:
            ConfigError: for `config.json`, `generation_config.json`.
            CheckpointError: for weights and catalogue; lists everything wrong with the tensors.
            OutOfMemoryPlanError: if the weights do not fit.
            EngineError: if the device cannot be had.
            ValueError: for an argument out of its range.
        """
        loaded = load(
            path,
            device=device,
            quantization=quantization,
            precision=precision,
            threads=threads,
            max_batch=max_batch,
            max_beam_width=max_beam_width,
            max_context=max_context,
            max_rows=max_rows,
            memory_limit=memory_limit,
        )
        engine = Engine(loaded)
        try:
            engine.warm_up(warmup)
        except BaseException:
            engine.close()
            raise
        return engine

    def warm_up(
        self, sizes: Sequence[int], *, beam_width: int | Sequence[int] | None = None, context: int | None = None
    ) -> None:
        """Records the plans of such calls, the largest first, so that no request waits for one.

        A plan serves every call whose numbers of requests, beams and context tokens round up to its own.

        Args:
            sizes: numbers of requests, each in [1, `limits.max_batch`].
            beam_width: as in `generate`.
            context: tokens of each request; by default `max_context`.

        Raises:
            ValueError: for a number out of its range.
            OutOfMemoryPlanError: if a plan does not fit into memory.
        """
        widths = self._settings.changed(
            beam_width=beam_width, num_results=None, constrained=True, exclude_history=False
        ).widths
        tokens = self.max_context if context is None else context
        if not tokens <= self.max_context:
            raise ValueError(f"[engine] got context {tokens}, want at most max_context {self.max_context}.")
        limits = context_limits(self.config.pathways, tokens)
        for size in sizes:
            if not 1 <= size <= self.limits.max_batch:
                raise ValueError(f"[engine] got warmup {size}, want 1 to max_batch {self.limits.max_batch}.")
        with self._usage.use():
            for size in sorted(sizes, reverse=True):
                self._core.prepare(uniform_batch(self.config, limits, size, widths))

    def generate(
        self,
        batch: Batch,
        *,
        beam_width: int | Sequence[int] | None = None,
        num_results: int | None = None,
        constrained: bool = True,
        exclude_history: bool = False,
    ) -> BatchResult:
        """Searches the most probable items of every request (beam search of docs/numerics.md).

        Args:
            batch: requests, or a dict of arrays of B requests: ``item_ids`` [T] with ``offsets`` [B + 1], histories;
                ``source`` with ``source.offsets`` for other item lists; ``pathway.field`` for features; and optionally
                ``beam_width``, ``num_results``, ``constrained``, ``exclude_history`` [B], ``exclude`` with
                ``exclude.offsets``, ``request_id``. Arrays are NumPy's, torch's on the CPU, or anything with DLPack.
            beam_width: beams kept after each level, one number or one per level; by default `generation_config.json`'s,
                or 64. What a request sets for itself wins over this and the other arguments.
            num_results: items per request, at most the last beam width; by default `generation_config.json`'s, or 10.
            constrained: search the catalogue's items alone. Otherwise results may be semantic ids that no item has.
            exclude_history: leave out the items of the history, as if the catalogue did not have them.

        Returns:
            one result per request, in order; a result is shorter than asked where there are not enough items.

        Raises:
            ValueError: for a request that does not fit the model; names its index.
            EngineError: if a request's scores are not finite; names its index.
            EngineClosedError: after `close`.
            OutOfMemoryPlanError: if a run does not fit into memory.
        """
        settings = self._settings.changed(
            beam_width=beam_width,
            num_results=num_results,
            constrained=constrained,
            exclude_history=exclude_history,
        )
        with self._usage.use():
            columns = read_batch(batch, self._schema, settings)
            packed = pack(columns, self._packer)
            runs = self._runs(packed)
            found = [self._search(packed, columns, chosen) for chosen in runs]
        return collect(found, runs, columns, packed)

    def score(self, batch: Batch, semantic_ids: Sequence[Any] | Any) -> list[npt.NDArray[np.float32]]:
        """Log-probabilities of given semantic ids, computed by the same kernels as the search.

        Args:
            batch: as for `generate`; settings of the search are checked but not used.
            semantic_ids: per request integers [n, levels], n any number from 0; or one array [B, n, levels].

        Returns:
            per request float32 [n].

        Raises:
            ValueError: for a request or code that does not fit the model; names the request's index.
            EngineError: if a request's scores are not finite; names its index.
            EngineClosedError: after `close`.
        """
        return self._score(batch, semantic_ids, self._core.run)

    def score_tapped(
        self, batch: Batch, semantic_ids: Sequence[Any] | Any
    ) -> tuple[list[npt.NDArray[np.float32]], list[tuple[str, npt.NDArray[Any], npt.NDArray[np.float32]]]]:
        """`score`, and the left-hand side of every matrix product on the way. For tests and statistics; slow.

        Returns:
            the scores; and per product the (fused) weight's name, the operand [rows, inputs] (float32, or uint8 E4M3
            codes) and its scales ([rows, 1] per token, [rows, blocks] per 128 columns; empty without codes).
        """
        operands: list[tuple[str, npt.NDArray[Any], npt.NDArray[np.float32]]] = []

        def run(arrays: Arrays) -> Arrays:
            result, seen = self._core.run_tapped(arrays)
            operands.extend(seen)
            return result

        return self._score(batch, semantic_ids, run), operands

    def memory_plan(self) -> dict[str, int]:
        """Bytes by purpose that the engine takes with its largest run; their sum is the whole.

        Returns:
            weights, catalogue, and the parts of a run at the engine's limits: among them context_kv, beam_state,
            workspace.
        """
        with self._usage.use():
            batch = largest_batch(self.config, self._context_limits, self.limits, self.max_beam_width)
            return parts(self._core.plan_for(batch), self.catalogue, self._trie)

    def close(self) -> None:
        """Frees everything, after calls that other threads are in have ended. Later calls raise EngineClosedError."""
        if self._usage.end():
            self._core.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Engine({self.precision} on {self.device}, {len(self.catalogue)} items)"

    def _runs(self, packed: PackedRequests) -> list[npt.NDArray[np.int64]]:
        if packed.size == 1:  # Whatever a request may be, a run holds it.
            return [np.zeros(1, np.int64)]
        return schedule(packed.widths, packed.context_sizes, packed.excluded_sizes, self.limits)

    def _search(self, packed: PackedRequests, columns: Columns, chosen: npt.NDArray[np.int64]) -> Found:
        arrays = packed.arrays(chosen)
        result = self._core.run(arrays)
        want_finite(result["status"], chosen)
        return expand(result, columns.num_results[chosen], arrays, self._trie)

    def _score(self, batch: Batch, semantic_ids: Any, run: Callable[[Arrays], Arrays]) -> list[npt.NDArray[np.float32]]:
        with self._usage.use():
            packed = pack(read_batch(batch, self._schema, self._settings), self._packer)
            given = read_candidates(semantic_ids, packed.size, self.config.codebook_sizes)
            pieces = split_candidates(given, self.limits.max_rows)
            scores = np.empty(len(given.codes), np.float32)
            costs = np.repeat(pieces.sizes[:, None], self.config.levels, axis=1)
            context = packed.context_sizes[pieces.owners]
            for chosen in schedule(costs, context, np.zeros_like(context), self.limits):
                result = run(pieces.arrays(packed, given, chosen))
                want_finite(result["status"], pieces.owners[chosen])
                scores[pieces.rows(chosen)] = result["scores"]
        return np.split(scores, given.offsets[1:-1]) if packed.size else []
