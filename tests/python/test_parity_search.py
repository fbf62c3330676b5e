"""The engine's beam search against the reference's, a plain one, and enumeration."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from engine_case import PRECISIONS, open_engine  # noqa: E402
from model_case import Case, summed  # noqa: E402
from model_grid import NAMED, TAGGED, grid, random_items, small_config  # noqa: E402
from plain_beam import Catalogue, Prefix, brute_force, plain_beam  # noqa: E402

from onerec_engine.reference import BeamResult, Emulated, Excluded, Trie, beam_search, score_tuples  # noqa: E402
from onerec_engine.request import Request  # noqa: E402
from onerec_engine.result import Result  # noqa: E402

GRID = grid(drawn=24)
LENGTHS = [3, 0, 12, 1, 5]
TOLERANCE = 2e-4


def asked(case: Case, **changes: Any) -> list[Request]:
    """The case's requests with settings."""
    return [
        Request(history=r.history, features=r.features, **{name: of[b] for name, of in changes.items()})
        for b, r in enumerate(case.requests)
    ]


def excluded_ids(case: Case, share: float, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [[int(item) for item in case.items.ids if rng.random() < share] for _ in case.requests]


def reference_search(
    case: Case, widths: Sequence[int], results: int, excluded: list[list[int]], *, constrained: bool
) -> BeamResult:
    rows = case.items.row()
    pairs = torch.tensor([(b, rows[item]) for b, of in enumerate(excluded) for item in of]).reshape(-1, 2).long()
    return beam_search(
        case.model,
        case.context,
        beam_width=widths,
        trie=Trie.build(case.items.ids, case.items.codes),
        excluded=Excluded(pairs[:, 0], pairs[:, 1]),
        num_results=results,
        constrained=constrained,
        ops=Emulated("fp32"),
    )


def check_ranking(got: Result, items: Sequence[int], scores: Sequence[float], own: dict[int, float]) -> None:
    """The same scores place by place, and the same items wherever scores differ by more than the tolerance.

    Args:
        got: the engine's.
        items: the other side's, best first; -1 for a semantic id without an item.
        scores: their scores.
        own: the other side's score of each item of the catalogue.
    """
    assert got.num_results == len(items)
    np.testing.assert_allclose(got.logprobs, scores, atol=TOLERANCE, rtol=0)
    assert (np.diff(got.logprobs) <= 0).all()
    theirs = [own.get(item, score) for item, score in zip(got.items.tolist(), got.logprobs.tolist(), strict=True)]
    np.testing.assert_allclose(got.logprobs, theirs, atol=TOLERANCE, rtol=0)
    assert all(theirs[i] >= max(theirs[i + 1 :]) - TOLERANCE for i in range(len(theirs) - 1))
    for place, item in enumerate(items):
        if item >= 0 and item not in got.items:
            # Another one of nearly the same score stands in its place.
            assert abs(scores[place] - scores[-1]) <= 2 * TOLERANCE


def all_item_scores(case: Case) -> list[dict[int, float]]:
    tuples = torch.from_numpy(case.items.codes)[None].expand(len(case.requests), -1, -1)
    scores = summed(score_tuples(case.model, case.context, tuples, Emulated("fp32")).numpy())
    return [dict(zip(case.items.ids.tolist(), row.tolist(), strict=True)) for row in scores]


@pytest.mark.parametrize("name", GRID)
def test_equals_the_references_search(tmp_path: Path, name: str):
    case = Case(GRID[name], seed=6, lengths=LENGTHS, tuples=1)
    levels = case.config.levels
    own = all_item_scores(case)
    excluded = excluded_ids(case, 0.2)
    settings_of = [(4,) * levels, tuple(range(2, 2 + levels)), (1,) * levels, (9,) * (levels - 1) + (30,)]
    with open_engine(case, tmp_path) as engine:
        for widths, constrained in itertools.product(settings_of, [True, False]):
            results = widths[-1]
            want = reference_search(case, widths, results, excluded, constrained=constrained)
            got = engine.generate(
                asked(case, exclude=excluded), beam_width=widths, num_results=results, constrained=constrained
            )
            for b in range(len(LENGTHS)):
                items, scores = listed(want, b, results, constrained=constrained)
                check_ranking(got[b], items, scores, own[b])


def listed(want: BeamResult, b: int, results: int, *, constrained: bool) -> tuple[list[int], list[float]]:
    """The reference's items; in a free search the beams without an item stay, as -1, and count."""
    assert want.item_ids is not None
    assert want.item_ranks is not None
    assert want.leaves is not None
    items = [i for i in want.item_ids[b].tolist() if i != -1]
    ranks = want.item_ranks[b, : len(items)].tolist()
    if not constrained:
        bare = [r for r, leaf in enumerate(want.leaves[b].tolist()) if leaf == -1 and want.scores[b, r] > -np.inf]
        merged = sorted([*zip(ranks, range(len(items)), items, strict=True), *((r, 0, -1) for r in bare)])
        items, ranks = [item for _, _, item in merged], [rank for rank, _, _ in merged]
    return items[:results], want.scores[b][ranks[:results]].tolist()


@pytest.mark.parametrize("name", ["plain", "two_levels", "four_levels", "everything", "moe", "eight_levels"])
@pytest.mark.parametrize("constrained", [True, False])
def test_wide_beams_find_what_enumeration_finds(tmp_path: Path, name: str, constrained: bool):
    case = Case(NAMED[name], seed=7, lengths=[5, 0], tuples=1)
    sizes = case.config.codebook_sizes
    every = list(itertools.product(*(range(size) for size in sizes)))
    table = torch.tensor(every)[None].expand(2, -1, -1)
    scores = summed(score_tuples(case.model, case.context, table, Emulated("fp32")).numpy())
    excluded = excluded_ids(case, 0.3)
    codes = {int(i): tuple(row) for i, row in zip(case.items.ids, case.items.codes.tolist(), strict=True)}
    widths = np.cumprod(sizes).tolist()
    with open_engine(case, tmp_path, max_beam_width=widths[-1]) as engine:
        got = engine.generate(
            asked(case, exclude=excluded), beam_width=widths, num_results=widths[-1], constrained=constrained
        )
    for b in range(2):
        by_tuple = dict(zip(every, scores[b].tolist(), strict=True))
        catalogue = Catalogue(codes, frozenset(excluded[b]))
        want = brute_force(by_tuple.__getitem__, sizes, catalogue if constrained else None)
        assert set(got[b].items[got[b].items >= 0].tolist()) == set(codes) - catalogue.excluded
        found = {tuple(row): score for row, score in zip(got[b].semantic_ids.tolist(), got[b].logprobs, strict=True)}
        banned = {codes[i] for i in catalogue.excluded} - {codes[i] for i in set(codes) - catalogue.excluded}
        assert set(found) == {beam.codes for beam in want} - banned
        for beam in want:
            assert beam.codes in banned or abs(found[beam.codes] - beam.score) <= TOLERANCE
        assert got[b].legal.all() or not constrained


class Tied:
    """A model whose heads or embeddings repeat rows, so that many scores are equal to the last bit."""

    def __init__(self, directory: Path, *, heads: int, embeddings: int) -> None:
        """Code c has the head's row c % heads and the embedding's row c % embeddings."""
        config = small_config(codebook_sizes=(6, 5, 7), pathways=(TAGGED,), decoder_position_embedding="learned")
        self.case = Case(config, seed=8, lengths=[4, 0, 7], tuples=1)
        self.heads, self.embeddings = heads, embeddings
        for t, size in enumerate(config.codebook_sizes):
            head = f"lm_heads.{t}.weight"
            self.case.state[head] = self.case.state[head][torch.arange(size) % heads] * (heads > 1)
            if t < 2:
                table = f"model.token_embeddings.{t}.weight"
                self.case.state[table] = self.case.state[table][torch.arange(size) % embeddings]
        self.case.model.load_state_dict(self.case.state)
        self.engine = open_engine(self.case, directory)
        sizes = config.codebook_sizes
        every = np.array(list(itertools.product(*(range(size) for size in sizes))))
        table = torch.from_numpy(every)[None].expand(3, -1, -1)
        self.scores = score_tuples(self.case.model, self.case.context, table, Emulated("fp32")).numpy()
        self.place = {tuple(codes): i for i, codes in enumerate(every.tolist())}

    def log_probabilities(self, request: int, prefix: Prefix) -> np.ndarray:
        """The reference's, the same for all codes that share their rows."""
        levels, size = 3, self.case.config.codebook_sizes[len(prefix)]
        first = tuple(code % self.embeddings for code in prefix)
        rest = (0,) * (levels - len(prefix) - 1)
        places = [self.place[(*first, code % self.heads, *rest)] for code in range(size)]
        row: np.ndarray = self.scores[request, places, len(prefix)]
        return row


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory):
    kinds = [(1, 9), (3, 9), (9, 2), (3, 2)]
    models = [Tied(tmp_path_factory.mktemp("tied"), heads=h, embeddings=e) for h, e in kinds]
    yield models
    for model in models:
        model.engine.close()


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    kind=st.integers(0, 3),
    widths=st.lists(st.integers(1, 40), min_size=3, max_size=3),
    share=st.sampled_from([0.0, 0.4, 1.0]),
    constrained=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_ties_go_to_the_smaller_parent_then_code(
    tied: list[Tied], kind: int, widths: list[int], share: float, constrained: bool, seed: int
):
    model, case = tied[kind], tied[kind].case
    excluded = excluded_ids(case, share, seed)
    got = model.engine.generate(
        asked(case, exclude=excluded), beam_width=widths, num_results=widths[-1], constrained=constrained
    )
    codes = {int(i): tuple(row) for i, row in zip(case.items.ids, case.items.codes.tolist(), strict=True)}
    for b in range(3):
        catalogue = Catalogue(codes, frozenset(excluded[b]))
        want = plain_beam(
            functools.partial(model.log_probabilities, b),
            case.config.codebook_sizes,
            widths,
            catalogue if constrained else None,
        )
        places = []
        for beam in want:
            if beam.score == -np.inf:
                continue
            items = sorted(i for i, of in codes.items() if of == beam.codes)
            free = [-1] if not items else [i for i in items if i not in catalogue.excluded]
            places += [(item, beam.codes) for item in free]
        found = zip(got[b].items.tolist(), map(tuple, got[b].semantic_ids.tolist()), strict=True)
        assert list(found) == places[: widths[-1]]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["everything", "moe_raw_scores", "blocks", "four_levels"])
def test_search_and_score_give_the_same_bits(tmp_path: Path, name: str, precision: str):
    case = Case(NAMED[name], seed=9, lengths=LENGTHS, tuples=1)
    with open_engine(case, tmp_path, precision) as engine:
        found = engine.generate(case.requests, beam_width=12, num_results=12, constrained=False)
        scored = engine.score(case.requests, [result.semantic_ids for result in found])
    for result, scores in zip(found, scored, strict=True):
        np.testing.assert_array_equal(result.logprobs, scores)


def test_catalogue_of_one_item(tmp_path: Path):
    case = Case(NAMED["plain"], lengths=[2, 0], tuples=1)
    case.items = random_items(case.config.codebook_sizes, count=1, seed=3)
    with open_engine(case, tmp_path) as engine:
        found = engine.generate(case.requests, beam_width=5, num_results=3)
        assert [result.items.tolist() for result in found] == [case.items.ids.tolist()] * 2
        nothing = engine.generate(asked(case, exclude=[case.items.ids] * 2), beam_width=5)
        assert [result.num_results for result in nothing] == [0, 0]
