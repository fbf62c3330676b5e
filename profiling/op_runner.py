"""The engine's ops on torch tensors: `onerec_engine._C.OpRunner` with its addresses filled in.

Ops run on the runner's own stream. What torch wrote must be there before an op reads it, and an op must be done before
torch reads: call `Ops.wait_for_torch` and `Ops.synchronize` in between.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from op_tensors import DTYPES, Beams, Operand, beams_tuple, matrix_tuple, operand_tuple
from torch import Tensor

from onerec_engine._C import OpRecording, OpRunner, OpTrie, OpWeight
from onerec_engine._native import use_matrix_library

__all__ = ["Ops"]

cuda: Any = torch.cuda


class Ops:
    """Ops of one device, "cpu" or "cuda". Arguments are as in csrc/ops/*.h; every row of a tensor is live."""

    def __init__(self, device: str, threads: int = 0) -> None:
        use_matrix_library()
        self.runner = OpRunner(device, threads)
        self.device = torch.device(device)
        handle = self.runner.stream_handle()
        self.stream = cuda.ExternalStream(handle) if handle else None

    def wait_for_torch(self) -> None:
        """Returns when torch has done what it was asked for."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def synchronize(self) -> None:
        self.runner.synchronize()

    def now(self, body: Callable[[], None]) -> None:
        """Runs ops between two of torch's own: their inputs are ready, and so are their outputs on return."""
        self.wait_for_torch()
        body()
        self.synchronize()

    def record(self, body: Callable[[], None]) -> OpRecording:
        """Records the ops that `body` issues; nothing may be allocated or freed on the device meanwhile."""
        self.wait_for_torch()
        gc.disable()
        try:
            return self.runner.record(body)
        finally:
            gc.enable()

    def pack(self, values: Tensor, scales: Tensor | None = None) -> OpWeight:
        """A weight [outputs, inputs] or [experts, outputs, inputs]; codes come with [..., outputs] or block scales."""
        shape = values.shape if values.ndim == 3 else (1, *values.shape)
        given: np.ndarray | None = None
        form = "dense"
        if scales is not None:
            given = scales.float().reshape(shape[0], *scales.shape[values.ndim - 2 :]).cpu().contiguous().numpy()
            form = "fp8_channel" if given.ndim == 2 else "fp8_block"
        raw = values.contiguous().view(torch.uint8).flatten().cpu().numpy()
        return self.runner.pack_linear(
            raw,
            dtype=DTYPES[values.dtype],
            format=form,
            experts=shape[0],
            outputs=shape[1],
            inputs=shape[2],
            scales=given,
        )

    def trie(self, semantic_ids: np.ndarray, codebook_sizes: Sequence[int]) -> OpTrie:
        return self.runner.make_trie(np.ascontiguousarray(semantic_ids, np.int32), list(codebook_sizes))

    def linear(self, x: Operand, weight: OpWeight, y: Tensor, residual: Tensor | None = None) -> None:
        other = None if residual is None else matrix_tuple(residual)
        self.runner.linear(operand_tuple(x), weight, matrix_tuple(y), (y.shape[0], 0), residual=other)

    def grouped_linear(self, x: Operand, weight: OpWeight, offsets: Tensor, y: Tensor, alignment: int) -> None:
        out = matrix_tuple(y)
        self.runner.grouped_linear(operand_tuple(x), weight, offsets.data_ptr(), out, y.shape[0], alignment=alignment)

    def rms_norm(
        self,
        x: Tensor,
        gamma: Tensor,
        eps: float,
        y: Tensor | None = None,
        quantized: Operand | None = None,
        quantized_blocks: Operand | None = None,
        gamma_magnitude: float = -1.0,
    ) -> None:
        """Outputs may be left out; `gamma` is as wide as a row or divides it (a norm per group).

        Codes per row need `gamma_magnitude`, the largest magnitude of `gamma`.
        """
        width = gamma.shape[0]
        self.runner.rms_norm(
            matrix_tuple(x),
            gamma.data_ptr(),
            width,
            eps,
            (x.shape[0], 0),
            groups=x.shape[1] // width,
            gamma_magnitude=gamma_magnitude,
            y=None if y is None else matrix_tuple(y),
            quantized=None if quantized is None else operand_tuple(quantized),
            quantized_blocks=None if quantized_blocks is None else operand_tuple(quantized_blocks),
        )

    def quantize(self, x: Tensor, quantized: Operand) -> None:
        self.runner.quantize(matrix_tuple(x), operand_tuple(quantized), (x.shape[0], 0))

    def swiglu(self, gate_up: Tensor, y: Tensor | None = None, quantized: Operand | None = None) -> None:
        self.runner.swiglu(
            matrix_tuple(gate_up),
            gate_up.shape[1] // 2,
            (gate_up.shape[0], 0),
            y=None if y is None else matrix_tuple(y),
            quantized=None if quantized is None else operand_tuple(quantized),
        )

    def cross_attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        *,
        context_offsets: Tensor,
        row_offsets: Tensor,
        request_rows: int,
        request_tokens: int,
        heads: int,
        kv_heads: int,
        scale: float,
    ) -> None:
        self.runner.cross_attention(
            matrix_tuple(q),
            matrix_tuple(k),
            matrix_tuple(v),
            matrix_tuple(out),
            context_offsets=context_offsets.data_ptr(),
            row_offsets=row_offsets.data_ptr(),
            batch=row_offsets.shape[0] - 1,
            max_request_rows=request_rows,
            max_request_tokens=request_tokens,
            heads=heads,
            kv_heads=kv_heads,
            scale=scale,
        )

    def self_attention(
        self,
        qkv: Sequence[Tensor],
        ancestry: Sequence[Tensor],
        out: Tensor | Operand,
        *,
        heads: int,
        kv_heads: int,
        scale: float,
    ) -> None:
        """`out`: the rows as they are, or their codes per row."""
        self.runner.self_attention(
            [matrix_tuple(step) for step in qkv],
            [rows.data_ptr() for rows in ancestry],
            None if isinstance(out, Operand) else matrix_tuple(out),
            heads=heads,
            kv_heads=kv_heads,
            scale=scale,
            rows=(qkv[-1].shape[0], 0),
            quantized=operand_tuple(out) if isinstance(out, Operand) else None,
        )

    def route(
        self,
        logits: Tensor,
        bias: Tensor,
        *,
        top_k: int,
        alignment: int,
        selected: Tensor,
        weights: Tensor,
        offsets: Tensor,
        slots: Tensor,
        sources: Tensor,
    ) -> None:
        """DeepSeek-V3's routing: sigmoid scores, normalised weights."""
        self.runner.route(
            matrix_tuple(logits),
            bias.data_ptr(),
            experts=bias.shape[0],
            top_k=top_k,
            score="sigmoid",
            normalize=True,
            scaling_factor=1.0,
            alignment=alignment,
            selected=selected.data_ptr(),
            weights=weights.data_ptr(),
            offsets=offsets.data_ptr(),
            slots=slots.data_ptr(),
            sources=sources.data_ptr(),
            rows=(logits.shape[0], 0),
        )

    def gather_rows(self, x: Operand, sources: Tensor, sorted_x: Operand, count: Tensor) -> None:
        """`count`: int32 [1], how many of the sorted rows are live."""
        extent = (sorted_x.values.shape[0], count.data_ptr())
        self.runner.gather_rows(operand_tuple(x), sources.data_ptr(), operand_tuple(sorted_x), extent)

    def moe_combine(
        self, expert_out: Tensor, slots: Tensor, weights: Tensor, h: Tensor, shared: Tensor | None = None
    ) -> None:
        self.runner.moe_combine(
            matrix_tuple(expert_out),
            slots.data_ptr(),
            weights.data_ptr(),
            slots.shape[1],
            matrix_tuple(h),
            (h.shape[0], 0),
            shared=None if shared is None else matrix_tuple(shared),
        )

    def beam_select(
        self,
        level: int,
        logits: Tensor,
        *,
        codebook: int,
        row_offsets: Tensor,
        next_offsets: Tensor,
        request_rows: int,
        request_next: int,
        current: Beams,
        following: Beams,
        status: Tensor,
        constrained: Tensor | None = None,
        trie: OpTrie | None = None,
    ) -> None:
        self.runner.beam_select(
            level=level,
            levels=current.codes.shape[1],
            logits=matrix_tuple(logits),
            codebook=codebook,
            row_offsets=row_offsets.data_ptr(),
            next_offsets=next_offsets.data_ptr(),
            batch=row_offsets.shape[0] - 1,
            next_capacity=following.scores.shape[0],
            max_request_rows=request_rows,
            max_request_next=request_next,
            current=beams_tuple(current),
            next=beams_tuple(following),
            status=status.data_ptr(),
            constrained=0 if constrained is None else constrained.data_ptr(),
            trie=trie,
        )
