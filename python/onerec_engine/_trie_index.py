"""The catalogue in trie order: from the leaves the engine returns to items."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onerec_engine.catalogue import Catalogue

__all__ = ["TrieIndex"]


class TrieIndex:
    """Items sorted by their codes. A leaf is a distinct semantic id; leaves are numbered in that order.

    Attributes:
        order: int32 [n]: the item at trie position p is item order[p] of the catalogue.
        position: int32 [n]: the inverse of `order`.
        leaf_items: int32 [leaves + 1]: leaf e has the trie positions [leaf_items[e], leaf_items[e + 1]).
        edges: distinct prefixes of each length, per level.
        items: the same for compiled code.
    """

    __slots__ = ("edges", "items", "leaf_items", "order", "position")

    def __init__(
        self,
        catalogue: Catalogue,
        order: npt.NDArray[np.int64] | None = None,
        leaf_items: npt.NDArray[np.int32] | None = None,
    ) -> None:
        """Indexes a catalogue.

        Args:
            catalogue: the items.
            order: the trie order, if it is known already: by codes, then by item id.
            leaf_items: as in the class, if known already.
        """
        from onerec_engine import _C

        if order is None:
            # lexsort is stable and its last key is the first to sort by.
            order = np.lexsort(catalogue.semantic_ids.T[::-1])
        self.order = order.astype(np.int32)
        self.position = np.empty(len(catalogue), np.int32)
        self.position[order] = np.arange(len(catalogue), dtype=np.int32)
        # Whether a trie position is the first of its prefix, level by level.
        first = np.zeros(len(catalogue), bool)
        first[0] = True
        edges = []
        for level in range(catalogue.levels):
            code = catalogue.semantic_ids[self.order, level]
            first[1:] |= code[1:] != code[:-1]
            edges.append(int(np.count_nonzero(first)))
        self.edges = tuple(edges)
        self.leaf_items = (
            np.append(np.flatnonzero(first), len(catalogue)).astype(np.int32) if leaf_items is None else leaf_items
        )
        self.items = _C.ItemIndex(
            catalogue.item_ids, catalogue.semantic_ids, self.order, self.position, self.leaf_items
        )
