"""The reference's beam search on tables of logits, against a plain beam search and against enumeration."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from plain_beam import Beam, Catalogue, brute_force, plain_beam, to_items  # noqa: E402

from onerec_engine.reference import BeamResult, Excluded, Native, Trie, beam_search  # noqa: E402
from onerec_engine.reference.generate import log_sum_exp  # noqa: E402
from onerec_engine.reference.layers import StepHistory  # noqa: E402

Prefix = tuple[int, ...]


class TableModel:
    """Stands in for the model: the logits of each prefix of each request come from tables, its rows by ancestry."""

    def __init__(self, tables: list[list[torch.Tensor]]) -> None:
        """`tables[b][t]` is float32 [V_0, .., V_t], request b's logits of level t."""
        self.tables = tables
        levels = len(tables[0])
        self.config = SimpleNamespace(levels=levels, num_hidden_layers=1)
        self.codes: list[list[int]] = []

    def context_kv(self, context: object, ops: Native) -> SimpleNamespace:
        self.codes = []
        return SimpleNamespace(requests=len(self.tables), keys=[torch.empty(0)])

    def step(
        self,
        step: int,
        codes: torch.Tensor | None,
        shape: tuple[int, int],
        kv: object,
        history: StepHistory,
        ops: Native,
    ) -> torch.Tensor:
        self.codes.append([-1] * len(self.tables) if codes is None else codes.flatten().tolist())
        out = []
        for row in range(shape[0] * shape[1]):
            lineage = [] if history.ancestors is None else history.ancestors[row].tolist()
            prefix = tuple(self.codes[s][r] for s, r in enumerate([*lineage, row]))[1:]
            out.append(self.tables[row // shape[1]][step][prefix])
        return torch.stack(out).view(*shape, -1)

    def log_probabilities(self, request: int, prefix: Prefix) -> np.ndarray:
        logits = self.tables[request][len(prefix)][prefix]
        return (logits - log_sum_exp(logits)).numpy()

    def score(self, request: int, codes: Prefix) -> float:
        total = np.float32(0)
        for t, code in enumerate(codes):
            total += self.log_probabilities(request, codes[:t])[code]
        return float(total)


@dataclass
class Search:
    """A search problem: codebooks, logits, a catalogue with exclusions per request, widths."""

    sizes: list[int]
    model: TableModel
    items: dict[int, Prefix]
    excluded: list[frozenset[int]]
    widths: list[int]

    @property
    def requests(self) -> int:
        return len(self.excluded)

    def catalogue(self, request: int) -> Catalogue:
        return Catalogue(self.items, self.excluded[request])

    def reference(self, *, constrained: bool, num_results: int, widths: list[int] | None = None) -> BeamResult:
        ids = list(self.items)
        pairs = [(b, ids.index(item)) for b, of in enumerate(self.excluded) for item in of]
        table = torch.tensor(pairs, dtype=torch.int64).reshape(len(pairs), 2)
        return beam_search(
            self.model,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            beam_width=widths or self.widths,
            trie=Trie.build(ids, [self.items[i] for i in ids]),
            constrained=constrained,
            excluded=Excluded(table[:, 0], table[:, 1]),
            num_results=num_results,
            exact=True,
        )


@st.composite
def searches(draw: st.DrawFn, most_levels: int = 4) -> Search:
    n = draw(st.integers(1, most_levels))
    sizes = draw(st.lists(st.integers(1, 5), min_size=n, max_size=n))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    # Few distinct logits make many ties, one makes all scores of a level equal.
    distinct = draw(st.sampled_from([1, 2, 3, 1000]))
    requests = draw(st.integers(1, 3))
    tables = []
    for _ in range(requests):
        shapes = [tuple(sizes[: t + 1]) for t in range(n)]
        values = [rng.integers(distinct, size=shape) * (3 / distinct) for shape in shapes]
        tables.append([torch.from_numpy(np.asarray(value, np.float32)) for value in values])
    every = list(itertools.product(*(range(size) for size in sizes)))
    count = draw(st.integers(1, 12))
    chosen = rng.integers(len(every), size=count)
    ids = rng.permutation(3 * count)[:count] - count
    items = {int(item): every[i] for item, i in zip(ids, chosen, strict=True)}
    share = draw(st.sampled_from([0.0, 0.3, 1.0]))
    excluded = [frozenset(item for item in items if rng.random() < share) for _ in range(requests)]
    widths = draw(st.lists(st.integers(1, 9), min_size=n, max_size=n))
    return Search(sizes, TableModel(tables), items, excluded, widths)


def found(result: BeamResult, request: int) -> list[Beam]:
    """A request's beams; the codes of dead ones are left out."""
    pairs = zip(result.codes[request].tolist(), result.scores[request].tolist(), strict=True)
    return [Beam(tuple(codes) if score > -np.inf else (), score) for codes, score in pairs]


def found_items(result: BeamResult, request: int) -> list[tuple[int, float]]:
    assert result.item_ids is not None
    assert result.item_scores is not None
    pairs = zip(result.item_ids[request].tolist(), result.item_scores[request].tolist(), strict=True)
    return [pair for pair in pairs if pair[1] > -np.inf]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(search=searches(), constrained=st.booleans(), num_results=st.integers(1, 14))
def test_equals_a_plain_beam_search(search: Search, constrained: bool, num_results: int):
    result = search.reference(constrained=constrained, num_results=num_results)
    for b in range(search.requests):
        catalogue = search.catalogue(b)
        want = plain_beam(
            lambda prefix, b=b: search.model.log_probabilities(b, prefix),
            search.sizes,
            search.widths,
            catalogue if constrained else None,
        )
        assert found(result, b) == want
        assert found_items(result, b) == to_items(want, catalogue, num_results)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(search=searches(most_levels=3), constrained=st.booleans())
def test_wide_beams_find_what_enumeration_finds(search: Search, constrained: bool):
    widths = np.cumprod(search.sizes).tolist()
    result = search.reference(constrained=constrained, num_results=20, widths=widths)
    for b in range(search.requests):
        catalogue = search.catalogue(b)
        want = brute_force(
            lambda codes, b=b: search.model.score(b, codes), search.sizes, catalogue if constrained else None
        )
        got = [beam for beam in found(result, b) if beam.score > -np.inf]
        assert [beam.score for beam in got] == [beam.score for beam in want]
        assert {beam.codes: beam.score for beam in got} == {beam.codes: beam.score for beam in want}
        legal = {item for item in search.items if item not in search.excluded[b]}
        assert {item for item, _ in found_items(result, b)} == legal


def test_equal_scores_are_ordered_by_parent_then_code():
    tables = [[torch.zeros(3), torch.zeros(3, 2), torch.zeros(3, 2, 3)]]
    model = TableModel(tables)
    result = beam_search(model, None, beam_width=[2, 3, 7], exact=True)  # type: ignore[arg-type]
    assert [tuple(codes) for codes in result.codes[0].tolist()] == [
        (0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0), (0, 1, 1), (0, 1, 2), (1, 0, 0),
    ]  # fmt: skip


def test_negative_zero_is_no_smaller_than_zero():
    """A single code has log-probability 0 or -0: neither goes first."""
    model = TableModel([[torch.tensor([0.0, -0.0]), torch.tensor([[-0.0], [0.0]])]])
    result = beam_search(model, None, beam_width=[2, 2], exact=True)  # type: ignore[arg-type]
    assert result.codes[0].tolist() == [[0, 0], [1, 0]]


def test_log_sum_exp_is_stable():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((20, 257)).astype(np.float32) * 5
    logits[3] += 1e4
    logits[4] -= 1e4
    logits[5, 7] = -np.inf
    want = [np.log(np.exp(row.astype(np.float64) - row.max()).sum()) + float(row.max()) for row in logits]
    np.testing.assert_allclose(log_sum_exp(torch.from_numpy(logits)).numpy(), want, rtol=1e-6, atol=1e-5)


def test_arguments_are_checked():
    model = TableModel([[torch.zeros(3)]])
    for width in (0, [1, 2], []):
        with pytest.raises(ValueError, match="beam_width"):
            beam_search(model, None, beam_width=width)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="without a trie"):
        beam_search(model, None, beam_width=1, num_results=1)  # type: ignore[arg-type]
