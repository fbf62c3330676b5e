"""What goes into a model's matrix products on real histories."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onerec_engine.cli.options import kept
from onerec_engine.cli.progress import bar
from onerec_engine.cli.statistics import Spread, spread
from onerec_engine.evaluation import LeaveOneOut, sample_users
from onerec_engine.float_formats import e4m3_values

if TYPE_CHECKING:
    from onerec_engine.engine import Engine

__all__ = ["input_spreads"]

_USERS_PER_CALL = 8


def input_spreads(
    engine: Engine, split: LeaveOneOut, users: int, beam_width: int | list[int], seed: int = 0
) -> list[Spread]:
    """The spread of every linear's input over the beams that the model itself finds for a sample of users.

    Args:
        engine: in any precision; FP8 operands are measured as their codes and scales say.
        split: histories.
        users: how many to sample.
        beam_width: of the search whose results are fed through the model again.
        seed: of the sample.
    """
    chosen = sample_users(len(split), users, seed)
    seen: dict[str, list[npt.NDArray[np.float32]]] = {}
    with bar(chosen.size, "measuring inputs", "users") as shown:
        for first in range(0, chosen.size, _USERS_PER_CALL):
            part = chosen[first : first + _USERS_PER_CALL]
            item_ids, offsets = split.ragged(part)
            batch = {"item_ids": item_ids, "offsets": offsets}
            found = engine.generate(batch, beam_width=beam_width, num_results=min(10, kept(beam_width)))
            _, operands = engine.score_tapped(batch, [result.semantic_ids for result in found])
            for name, values, scales in operands:
                seen.setdefault(name, []).append(_values(values, scales))
            shown.update(part.size)
    return [spread(name, np.concatenate([v.reshape(-1) for v in values])) for name, values in seen.items()]


def _values(values: npt.NDArray[Any], scales: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """An operand as real numbers: codes [rows, inputs] times their scales [rows, 1 or blocks of 128 inputs]."""
    if values.dtype != np.uint8:
        return values
    if scales.shape[1] > 1:
        scales = scales.repeat(128, axis=1)[:, : values.shape[1]]
    codes: npt.NDArray[np.float32] = e4m3_values()[values]
    return codes * scales
