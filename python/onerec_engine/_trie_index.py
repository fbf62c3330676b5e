"""The catalogue in trie order: from the leaves the engine returns to items, and from codes to leaves."""

from __future__ import annotations

from collections.abc import Iterator

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
    """

    __slots__ = ("_catalogue", "_prefixes", "edges", "leaf_items", "order", "position")

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
        if order is None:
            # lexsort is stable and its last key is the first to sort by.
            order = np.lexsort(catalogue.semantic_ids.T[::-1])
        self._catalogue = catalogue
        self._prefixes: tuple[npt.NDArray[np.int64], ...] | None = None
        self.order = order.astype(np.int32)
        self.position = np.empty(len(catalogue), np.int32)
        self.position[order] = np.arange(len(catalogue), dtype=np.int32)
        edges = []
        for _, first in self._levels():
            edges.append(int(np.count_nonzero(first)))
        self.edges = tuple(edges)
        self.leaf_items = (
            np.append(np.flatnonzero(first), len(catalogue)).astype(np.int32) if leaf_items is None else leaf_items
        )

    def leaves_of(self, codes: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """The leaf of each semantic id [k, levels], int64 [k]; -1 where no item has it."""
        if self._prefixes is None:
            self._prefixes = tuple(self._make_prefixes())
        found = np.zeros(len(codes), np.int64)
        sizes = self._catalogue.codebook_sizes
        for level, (keys, size) in enumerate(zip(self._prefixes, sizes, strict=True)):
            key = found * size + codes[:, level]
            at = np.minimum(np.searchsorted(keys, key), keys.size - 1)
            found = np.where((keys[at] == key) & (found >= 0), at, -1)
        return found

    def _levels(self) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]]:
        """Per level: the code of each trie position, and whether it is the first of its prefix; overwritten."""
        first = np.zeros(len(self.order), bool)
        first[0] = True
        for level in range(self._catalogue.levels):
            code = self._catalogue.semantic_ids[self.order, level]
            first[1:] |= code[1:] != code[:-1]
            yield code, first

    def _make_prefixes(self) -> Iterator[npt.NDArray[np.int64]]:
        """Per level, ascending: parent * codebook_size + code of every prefix, parents counted in the level above."""
        parent = np.zeros(len(self.order), np.int64)
        for (code, first), size in zip(self._levels(), self._catalogue.codebook_sizes, strict=True):
            yield (parent * size + code)[first]
            parent = np.cumsum(first) - 1
