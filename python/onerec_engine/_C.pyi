"""The compiled engine."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

def build_info() -> dict[str, str]: ...
def set_matrix_library(path: str) -> None: ...
def quantize_channel(
    values: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]: ...
def quantize_block(
    values: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]: ...
def find_ids(ids: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]: ...
def check_settings(
    widths: npt.NDArray[np.int64],
    num_results: npt.NDArray[np.int64],
    max_width: int,
    call_results: int,
    default_results: int,
) -> tuple[npt.NDArray[np.int64], int, int]: ...

class Core:
    def __init__(
        self,
        config: dict[str, Any],
        *,
        precision: str,
        experts: str,
        device: str,
        threads: int,
        max_batch: int,
        max_rows: int,
        max_context_tokens: int,
        max_excluded: int,
        memory_limit: int,
        fused: bool = True,
        overlapped: bool = True,
    ) -> None: ...
    @property
    def device_name(self) -> str: ...
    def tensors(self) -> list[tuple[str, tuple[int, ...], str]]: ...
    def set_tensor(
        self,
        name: str,
        values: npt.NDArray[np.uint8],
        dtype: str,
        scales: npt.NDArray[np.float32] | None = None,
    ) -> None: ...
    def finish_loading(self) -> None: ...
    def set_catalogue(self, semantic_ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]: ...
    def leaf_items(self) -> npt.NDArray[np.int32]: ...
    def run(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]: ...
    def run_directly(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]: ...
    def run_tapped(
        self, batch: dict[str, npt.NDArray[Any]]
    ) -> tuple[dict[str, npt.NDArray[Any]], list[tuple[str, npt.NDArray[Any], npt.NDArray[np.float32]]]]: ...
    def prepare(self, batch: dict[str, npt.NDArray[Any]]) -> None: ...
    def memory_plan(self) -> dict[str, int]: ...
    def plan_for(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, int]: ...
    def poison(self, value: int) -> None: ...
    def close(self) -> None: ...

class ItemIndex:
    def __init__(
        self,
        item_ids: npt.NDArray[np.int64],
        semantic_ids: npt.NDArray[np.int32],
        order: npt.NDArray[np.int32],
        position: npt.NDArray[np.int32],
        leaf_items: npt.NDArray[np.int32],
    ) -> None: ...
    def expand(
        self,
        beams: dict[str, npt.NDArray[Any]],
        constrained: npt.NDArray[np.uint8],
        num_results: npt.NDArray[np.int64],
        excluded: npt.NDArray[np.int32],
        excluded_offsets: npt.NDArray[np.int32],
    ) -> tuple[
        npt.NDArray[np.int64],
        npt.NDArray[np.int32],
        npt.NDArray[np.float32],
        npt.NDArray[np.bool_],
        npt.NDArray[np.int64],
    ]: ...

class PackedRequests:
    @property
    def size(self) -> int: ...
    @property
    def widths(self) -> npt.NDArray[np.int32]: ...
    @property
    def context_sizes(self) -> npt.NDArray[np.int64]: ...
    @property
    def excluded_sizes(self) -> npt.NDArray[np.int64]: ...
    @property
    def unknown(self) -> npt.NDArray[np.int64]: ...
    @property
    def truncated(self) -> npt.NDArray[np.int64]: ...
    def arrays(self, chosen: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]: ...

# (item ids, offsets)
_Ragged = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]

class Packer:
    def __init__(
        self,
        items: ItemIndex,
        # (name, number of the source or -1, tokens kept, position embedding, columns of each dense field or 0)
        pathways: Sequence[tuple[str, int, int, str, list[int]]],
        sources: int,
        max_widths: list[int],
        max_free_widths: list[int],
    ) -> None: ...
    def pack(
        self,
        sources: Sequence[_Ragged],
        exclude: _Ragged,
        features: Sequence[npt.NDArray[Any]],
        widths: npt.NDArray[np.int64],
        constrained: npt.NDArray[np.bool_],
        exclude_history: npt.NDArray[np.bool_],
    ) -> PackedRequests: ...

# Tensors by address: (address, dtype name, rows, columns, stride in elements).
_Matrix = tuple[int, str, int, int, int]
# (values, "none" or "row" or "block", address of the scales, their stride)
_Operand = tuple[_Matrix, str, int, int]
# (scores, states, codes, ancestry of each earlier step)
_Beams = tuple[int, int, int, list[int]]
# (capacity, address of the live count or 0)
_Extent = tuple[int, int]

class OpWeight:
    @property
    def bytes(self) -> int: ...

class OpTrie:
    def edges(self, level: int) -> int: ...

class OpRecording: ...

class OpRunner:
    def __init__(self, device: str, threads: int = 0) -> None: ...
    @property
    def device_name(self) -> str: ...
    def stream_handle(self) -> int: ...
    def synchronize(self) -> None: ...
    def poison(self, value: int) -> None: ...
    def record(self, body: Callable[[], None]) -> OpRecording: ...
    def replay(self, recording: OpRecording) -> None: ...
    def pack_linear(
        self,
        values: npt.NDArray[np.uint8],
        *,
        dtype: str,
        format: str,
        experts: int = 1,
        outputs: int,
        inputs: int,
        scales: npt.NDArray[np.float32] | None = None,
    ) -> OpWeight: ...
    def make_trie(self, semantic_ids: npt.NDArray[np.int32], codebook_sizes: list[int]) -> OpTrie: ...
    def grouped_alignment(self, rows: int, experts: int, top_k: int) -> int: ...
    def linear(
        self,
        x: _Operand,
        weight: OpWeight,
        y: _Matrix,
        rows: _Extent,
        *,
        bias: int = 0,
        residual: _Matrix | None = None,
    ) -> None: ...
    def grouped_linear(
        self, x: _Operand, weight: OpWeight, offsets: int, y: _Matrix, rows_capacity: int, *, alignment: int = 1
    ) -> None: ...
    def rms_norm(
        self,
        x: _Matrix,
        gamma: int,
        width: int,
        eps: float,
        rows: _Extent,
        *,
        groups: int = 1,
        gamma_magnitude: float = -1.0,
        y: _Matrix | None = None,
        quantized: _Operand | None = None,
        quantized_blocks: _Operand | None = None,
    ) -> None: ...
    def quantize(self, x: _Matrix, quantized: _Operand, rows: _Extent) -> None: ...
    def swiglu(
        self,
        gate_up: _Matrix,
        width: int,
        rows: _Extent,
        *,
        y: _Matrix | None = None,
        quantized: _Operand | None = None,
    ) -> None: ...
    def cross_attention(
        self,
        q: _Matrix,
        k: _Matrix,
        v: _Matrix,
        out: _Matrix,
        *,
        context_offsets: int,
        row_offsets: int,
        batch: int,
        max_request_rows: int,
        max_request_tokens: int,
        heads: int,
        kv_heads: int,
        scale: float,
    ) -> None: ...
    def self_attention(
        self,
        qkv: list[_Matrix],
        ancestry: list[int],
        out: _Matrix | None,
        *,
        heads: int,
        kv_heads: int,
        scale: float,
        rows: _Extent,
        quantized: _Operand | None = None,
    ) -> None: ...
    def route(
        self,
        logits: _Matrix,
        bias: int,
        *,
        experts: int,
        top_k: int,
        score: str,
        normalize: bool,
        scaling_factor: float,
        alignment: int,
        selected: int,
        weights: int,
        offsets: int,
        slots: int,
        sources: int,
        rows: _Extent,
    ) -> None: ...
    def gather_rows(self, x: _Operand, sources: int, sorted: _Operand, sorted_rows: _Extent) -> None: ...
    def moe_combine(
        self,
        expert_out: _Matrix,
        slots: int,
        weights: int,
        top_k: int,
        h: _Matrix,
        rows: _Extent,
        *,
        shared: _Matrix | None = None,
    ) -> None: ...
    def beam_select(
        self,
        *,
        level: int,
        levels: int,
        logits: _Matrix,
        codebook: int,
        row_offsets: int,
        next_offsets: int,
        batch: int,
        next_capacity: int,
        max_request_rows: int,
        max_request_next: int,
        current: _Beams,
        next: _Beams,
        status: int,
        constrained: int = 0,
        trie: OpTrie | None = None,
    ) -> None: ...
