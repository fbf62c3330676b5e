"""What to recommend for: one user's request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Request"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """One user's history and what is asked for. A setting that is not None wins over the call's.

    Sequences may be lists, NumPy arrays, torch tensors on the CPU, or anything else with DLPack.

    Attributes:
        history: item ids, oldest first. Ids that the catalogue does not have are dropped and counted; of what is left,
            each pathway uses its newest `max_tokens`.
        features: ``"pathway.field"`` to values: for an ``items`` pathway one per item of its source (for a dense field
            of `dim` > 1, `dim` per item), aligned with the ids as given here, unknown ones included; for a ``static``
            pathway one value, or `dim` values. And, for pathways whose source is not the history, the source's name
            to item ids.
        beam_width: beams kept after each level, one number or one per level.
        num_results: how many items to return, at most the last beam width.
        constrained: whether to search the catalogue's items alone.
        exclude: item ids not to return, as if the catalogue did not have them.
        exclude_history: whether all of `history` is excluded too, tokens that did not fit the context included.
        request_id: handed through to the result.
    """

    history: Sequence[int] | Any = ()
    features: Mapping[str, Any] = field(default_factory=dict)
    beam_width: int | Sequence[int] | None = None
    num_results: int | None = None
    constrained: bool | None = None
    exclude: Sequence[int] | Any = ()
    exclude_history: bool | None = None
    request_id: Any = None
