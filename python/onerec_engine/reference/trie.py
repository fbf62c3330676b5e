"""The catalogue as a trie in compressed sparse rows: children of a node lie side by side, sorted by code."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Excluded", "Trie"]


@dataclass(frozen=True, slots=True)
class Excluded:
    """Items the search must not return, packed over the requests.

    Attributes:
        request: int64 [n], which request.
        item: int64 [n], row of the catalogue as the trie was built from it (not the item id).
    """

    request: Tensor
    item: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Trie:
    """All prefixes of the catalogue's semantic ids. Depth 0 is the root, depth T the leaves.

    A node of depth t + 1 is numbered by its place among all of depth t + 1 in lexicographic order.

    Attributes:
        child_start: per depth t < T, int64 [nodes_t + 1]: node n's children are child_start[n] .. child_start[n + 1].
        child_code: per depth t < T, int64 [nodes_{t+1}]: the code leading to each node of depth t + 1.
        max_children: per depth t < T, the largest number of children of a node.
        item_node: int64 [T, n_items]: the node of depth t + 1 on each item's path, by catalogue row.
        items_below: per depth t < T, int64 [nodes_{t+1}]: items under each node of depth t + 1.
        leaf_start: int64 [nodes_T + 1], leaf n's items being leaf_items[leaf_start[n] : leaf_start[n + 1]].
        leaf_items: int64 [n_items], catalogue rows by leaf, then ascending item id.
        max_items: the largest number of items on a leaf.
        item_ids: int64 [n_items], by catalogue row.
    """

    child_start: tuple[Tensor, ...]
    child_code: tuple[Tensor, ...]
    max_children: tuple[int, ...]
    item_node: Tensor
    items_below: tuple[Tensor, ...]
    leaf_start: Tensor
    leaf_items: Tensor
    max_items: int
    item_ids: Tensor

    @staticmethod
    def build(item_ids: npt.ArrayLike, semantic_ids: npt.ArrayLike, device: torch.device | str = "cpu") -> Trie:
        """Builds the trie.

        Args:
            item_ids: integers [n].
            semantic_ids: integers [n, T].
            device: where the tensors live.
        """
        ids = np.asarray(item_ids, dtype=np.int64)
        codes = np.asarray(semantic_ids).astype(np.int64)
        count, levels = codes.shape
        order = np.lexsort((ids, *codes.T[::-1]))
        ordered = codes[order]
        new = np.zeros(count, dtype=bool)
        new[:1] = True
        child_start, child_code, below, item_node = [], [], [], np.empty((levels, count), dtype=np.int64)
        parent = np.zeros(count, dtype=np.int64)
        parents = 1
        for t in range(levels):
            new = new | np.concatenate([new[:1], ordered[1:, t] != ordered[:-1, t]])
            node = np.cumsum(new) - 1
            child_start.append(np.searchsorted(parent[new], np.arange(parents + 1)))
            child_code.append(ordered[new, t])
            item_node[t, order] = node
            parents = int(new.sum())
            below.append(np.bincount(node, minlength=parents))
            parent = node

        def tensor(array: npt.NDArray[np.int64]) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(device)

        return Trie(
            child_start=tuple(tensor(a) for a in child_start),
            child_code=tuple(tensor(a) for a in child_code),
            max_children=tuple(int(np.diff(a).max(initial=0)) for a in child_start),
            item_node=tensor(item_node),
            items_below=tuple(tensor(a) for a in below),
            leaf_start=tensor(np.searchsorted(parent, np.arange(parents + 1))),
            leaf_items=tensor(order),
            max_items=int(below[-1].max(initial=0)),
            item_ids=tensor(ids),
        )

    def children(self, depth: int, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The children of nodes of one depth, padded to the depth's maximum C.

        Args:
            depth: t < T.
            nodes: int64 [...].

        Returns:
            Child nodes of depth t + 1, their codes, and which of them exist, each [..., C].
        """
        start = self.child_start[depth]
        first = start[nodes].unsqueeze(-1)
        child = first + torch.arange(self.max_children[depth], device=nodes.device)
        exists = child < start[nodes + 1].unsqueeze(-1)
        child = torch.where(exists, child, first.clamp(max=self.child_code[depth].shape[0] - 1))
        return child, self.child_code[depth][child], exists

    def walk(self, depth: int, nodes: Tensor, codes: Tensor) -> Tensor:
        """The children reached from nodes of depth t by codes [...]; -1 where there is none, or where a node is -1."""
        start, child_code = self.child_start[depth], self.child_code[depth]
        if child_code.shape[0] == 0:
            return torch.full_like(nodes, -1)
        width = int(child_code.max()) + 2
        parent = torch.repeat_interleave(torch.arange(start.shape[0] - 1, device=start.device), start.diff())
        keys = parent * width + child_code
        wanted = nodes * width + codes.clamp(max=width - 1)
        place = torch.searchsorted(keys, wanted).clamp(max=keys.shape[0] - 1)
        return torch.where((keys[place] == wanted) & (nodes >= 0), place, -1)

    def dead_nodes(self, excluded: Excluded, requests: int) -> list[Tensor]:
        """Per depth t < T, bool [B, nodes_{t+1}]: the nodes all of whose items a request excludes."""
        count = self.item_ids.shape[0]
        pair = torch.unique(excluded.request * count + excluded.item)
        request, item = pair // count, pair % count
        dead = []
        for t, below in enumerate(self.items_below):
            node, times = torch.unique(request * below.shape[0] + self.item_node[t][item], return_counts=True)
            table = torch.zeros(requests * below.shape[0], dtype=torch.bool, device=below.device)
            table[node] = times == below[node % below.shape[0]]
            dead.append(table.view(requests, -1))
        return dead

    def expand(self, leaves: Tensor, excluded: Excluded | None, results: int) -> tuple[Tensor, Tensor]:
        """Beams to items: leaves [B, W] in order (-1 for none) -> item ids and beam ranks [B, results], -1 padded."""
        batch = leaves.shape[0]
        if self.max_items == 0:
            nothing = torch.full((batch, results), -1, dtype=torch.int64, device=leaves.device)
            return nothing, nothing.clone()
        first = self.leaf_start[leaves.clamp(min=0)].unsqueeze(-1)
        place = first + torch.arange(self.max_items, device=leaves.device)
        valid = (place < self.leaf_start[leaves.clamp(min=0) + 1].unsqueeze(-1)) & (leaves >= 0).unsqueeze(-1)
        row = self.leaf_items[place.clamp(max=self.leaf_items.shape[0] - 1)]
        if excluded is not None:
            banned = torch.zeros(batch, self.item_ids.shape[0], dtype=torch.bool, device=leaves.device)
            banned[excluded.request, excluded.item] = True
            valid &= ~banned.gather(1, row.flatten(1)).view(row.shape)
        row, valid = row.flatten(1), valid.flatten(1)
        order = torch.argsort((~valid).to(torch.int8), dim=1, stable=True)[:, :results]
        kept = valid.gather(1, order)
        items = torch.where(kept, self.item_ids[row.gather(1, order)], -1)
        ranks = torch.where(kept, order // self.max_items, -1)
        missing = results - items.shape[1]
        if missing > 0:
            items = torch.nn.functional.pad(items, (0, missing), value=-1)
            ranks = torch.nn.functional.pad(ranks, (0, missing), value=-1)
        return items, ranks
