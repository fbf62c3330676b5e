"""The compiled engine."""

from typing import Any

import numpy as np
import numpy.typing as npt

def build_info() -> dict[str, str]: ...
def quantize_channel(
    values: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]: ...
def quantize_block(
    values: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]: ...
def quantize_rows_block(
    values: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]: ...

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
    ) -> None: ...
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
    def run_tapped(
        self, batch: dict[str, npt.NDArray[Any]]
    ) -> tuple[dict[str, npt.NDArray[Any]], list[tuple[str, npt.NDArray[Any], npt.NDArray[np.float32]]]]: ...
    def memory_plan(self) -> dict[str, int]: ...
    def plan_for(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, int]: ...
    def close(self) -> None: ...
