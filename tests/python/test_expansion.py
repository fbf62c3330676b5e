"""From beams to items, against a plain loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onerec_engine._expansion import expand
from onerec_engine._trie_index import TrieIndex
from onerec_engine.catalogue import Catalogue

SIZES = (3, 2, 4)

Beam = tuple[float, tuple[int, int, int]]


def catalogue_of(seed: int, items: int) -> Catalogue:
    rng = np.random.default_rng(seed)
    codes = np.column_stack([rng.integers(0, size, items) for size in SIZES])
    return Catalogue(rng.permutation(4 * items)[:items] - items, codes, codebook_sizes=SIZES)


def items_by_codes(catalogue: Catalogue) -> dict[tuple[int, ...], list[int]]:
    found: dict[tuple[int, ...], list[int]] = {}
    for item, codes in zip(catalogue.item_ids.tolist(), catalogue.semantic_ids.tolist(), strict=True):
        found.setdefault(tuple(codes), []).append(item)
    return found


class Search:
    """One request: its beams, best first, and what is wanted of them."""

    def __init__(self, seed: int, beams: int, wanted: int, excluded: int, constrained: bool) -> None:
        self.seed, self.beams, self.wanted, self.excluded, self.constrained = seed, beams, wanted, excluded, constrained

    def run(self, catalogue: Catalogue) -> tuple[list[Beam], list[int]]:
        """Beams, a third of them dead; and the items that are excluded."""
        rng = np.random.default_rng(self.seed)
        every = np.array(sorted(items_by_codes(catalogue)) if self.constrained else list(np.ndindex(SIZES)))
        tuples = rng.permutation(every)[: self.beams].tolist()
        scores = -np.sort(rng.random(len(tuples)).astype(np.float32))
        scores[rng.random(len(tuples)) < 1 / 3] = -np.inf
        gone = rng.permutation(catalogue.item_ids)[: self.excluded]
        return [(float(s), tuple(t)) for s, t in zip(scores, tuples, strict=True)], gone.tolist()


def loop(search: Search, catalogue: Catalogue) -> list[tuple[int, tuple[int, ...], float, bool]]:
    """What a request is given, one item at a time."""
    out: list[tuple[int, tuple[int, ...], float, bool]] = []
    known = items_by_codes(catalogue)
    beams, gone = search.run(catalogue)
    for score, codes in beams:
        if score > -np.inf:
            here = [(item, codes, score, True) for item in sorted(known.get(codes, [])) if item not in gone]
            out += here if codes in known else [(-1, codes, score, False)]
    return out[: search.wanted]


def arrays(searches: Sequence[Search], catalogue: Catalogue, trie: TrieIndex) -> tuple[Any, Any]:
    """What a core answers, and what it was given."""
    leaf_of = {codes: leaf for leaf, codes in enumerate(sorted(items_by_codes(catalogue)))}
    scores, codes, leaves, excluded = [], [], [], []
    offsets, excluded_offsets = [0], [0]
    for search in searches:
        beams, gone = search.run(catalogue)
        for score, row in beams:
            scores.append(score)
            codes.append(row)
            alive = 0 if score > -np.inf else -1
            leaves.append(leaf_of[row] if search.constrained and alive == 0 else alive)
        offsets.append(len(scores))
        excluded += np.sort(trie.position[np.searchsorted(catalogue.item_ids, gone)]).tolist()
        excluded_offsets.append(len(excluded))
    answer = {
        "scores": np.array(scores, np.float32),
        "codes": np.array(codes, np.int32).reshape(-1, len(SIZES)),
        "leaves": np.array(leaves, np.int32),
        "offsets": np.array(offsets, np.int32),
    }
    given = {
        "constrained": np.array([s.constrained for s in searches], np.uint8),
        "excluded": np.array(excluded, np.int32),
        "excluded_offsets": np.array(excluded_offsets, np.int32),
    }
    return answer, given


counts = st.integers(0, 30)
searches = st.builds(Search, st.integers(0, 2**32 - 1), counts, st.integers(1, 40), counts, st.booleans())


@settings(deadline=None, max_examples=300)
@given(seed=st.integers(0, 2**32 - 1), items=st.integers(1, 40), batch=st.lists(searches, max_size=4))
def test_matches_a_loop(seed: int, items: int, batch: list[Search]) -> None:
    catalogue = catalogue_of(seed, items)
    trie = TrieIndex(catalogue)
    answer, given_ = arrays(batch, catalogue, trie)
    found = expand(answer, np.array([s.wanted for s in batch], np.int64), given_, trie)
    assert found.items.dtype == found.offsets.dtype == np.int64
    assert (found.semantic_ids.dtype, found.logprobs.dtype, found.legal.dtype) == (np.int32, np.float32, np.bool_)
    assert found.offsets.size == len(batch) + 1
    for b, search in enumerate(batch):
        rows = slice(found.offsets[b], found.offsets[b + 1])
        got = zip(
            found.items[rows].tolist(),
            map(tuple, found.semantic_ids[rows].tolist()),
            found.logprobs[rows].tolist(),
            found.legal[rows].tolist(),
            strict=True,
        )
        assert list(got) == loop(search, catalogue)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("scores", lambda a: a.astype(np.float64), "got scores of float64, want a C-contiguous array of float32"),
        ("codes", lambda a: a[:, :2], "codes"),
        ("leaves", lambda a: a[:-1], "got leaves of shape"),
        ("offsets", lambda a: a[:0], "offsets that do not ascend from 0 to"),
        ("offsets", lambda a: a + 1, "offsets that do not ascend from 0 to"),
        ("offsets", list, "got offsets that is no NumPy array, want int32"),
    ],
)
def test_arrays_that_do_not_fit(name: str, change: Any, message: str) -> None:
    catalogue = catalogue_of(0, 20)
    trie = TrieIndex(catalogue)
    answer, given_ = arrays([Search(0, 8, 3, 2, True)], catalogue, trie)
    with pytest.raises(ValueError, match=message):
        expand(answer | {name: change(answer[name])}, np.array([3]), given_, trie)
