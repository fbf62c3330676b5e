"""The PyTorch reference against exhaustive enumeration and an independent E4M3 table."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from onerec_engine.config import CategoricalField, DenseField, OneRecV2Config, Pathway  # noqa: E402
from onerec_engine.reference import (  # noqa: E402
    ContextInput,
    Emulated,
    Excluded,
    OneRecV2,
    PathwayInput,
    Trie,
    beam_search,
    random_state_dict,
    score_tuples,
)
from onerec_engine.reference.quantize import dequantize_e4m3, to_e4m3  # noqa: E402

MOE = {
    "n_routed_experts": 6,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}


def tiny_config(**changes: object) -> OneRecV2Config:
    fields = (
        CategoricalField(name="tag", num_embeddings=7, embedding_dim=3),
        DenseField(name="x", dim=2),
    )
    history = Pathway(
        name="history",
        kind="items",
        max_tokens=6,
        position_embedding="recency",
        hidden_sizes=(12,),
        bias=True,
        fields=fields,
    )
    user = Pathway(name="user", kind="static", fields=(DenseField(name="y", dim=3),))
    base: dict[str, object] = {
        "codebook_sizes": (5, 4, 6),
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "head_dim": 16,
        "intermediate_size": 48,
        "embed_dim": 6,
        "num_key_value_heads": 2,
        "num_context_kv_layers": 2,
        "context_kv_split": 2,
        "num_context_kv_heads": 2,
        "qk_norm": True,
        "attention_bias": True,
        "mlp_bias": True,
        "lm_head_bias": True,
        "decoder_position_embedding": "learned",
        "pathways": (history, user),
    }
    return OneRecV2Config(**(base | changes))  # type: ignore[arg-type]


def tiny_context(config: OneRecV2Config, lengths: list[int], seed: int = 0) -> ContextInput:
    """Requests of `lengths` history tokens and one static token each; length -1 is a request without any token."""
    generator = torch.Generator().manual_seed(seed)
    offsets = np.concatenate([[0], np.cumsum(np.array(lengths) + 1)])
    rows = [r for i, n in enumerate(lengths) for r in range(offsets[i], offsets[i] + n)]
    positions = [p for n in lengths for p in range(n - 1, -1, -1)]
    static = [int(offsets[i + 1]) - 1 for i, n in enumerate(lengths) if n >= 0]
    history = PathwayInput(
        codes=torch.stack([torch.randint(v, (len(rows),), generator=generator) for v in config.codebook_sizes], 1),
        positions=torch.tensor(positions),
        rows=torch.tensor(rows),
        categorical=torch.randint(7, (len(rows), 1), generator=generator),
        dense=torch.randn(len(rows), 2, generator=generator),
    )
    user = PathwayInput(
        codes=torch.empty(len(static), 0, dtype=torch.int64),
        positions=torch.zeros(len(static), dtype=torch.int64),
        rows=torch.tensor(static),
        categorical=torch.empty(len(static), 0, dtype=torch.int64),
        dense=torch.randn(len(static), 3, generator=generator),
    )
    return ContextInput(pathways=(history, user), context_offsets=torch.from_numpy(offsets))


LENGTHS = [3, 0, -1, 6, 2]


@pytest.fixture(params=["dense", "moe"])
def setup(request: pytest.FixtureRequest):
    config = tiny_config(**(MOE if request.param == "moe" else {}))
    model = OneRecV2.from_state_dict(config, random_state_dict(config, seed=1))
    context = tiny_context(config, LENGTHS)
    tuples = torch.tensor(list(itertools.product(*[range(v) for v in config.codebook_sizes])))
    scores = score_tuples(model, context, tuples[None].expand(len(LENGTHS), -1, -1))
    return model, context, tuples, scores


def test_probabilities_of_all_tuples_sum_to_one(setup):
    _, _, _, scores = setup
    torch.testing.assert_close(scores.sum(-1).exp().sum(-1), torch.ones(len(LENGTHS)))


def test_one_pass_forward_equals_stepwise_scoring(setup):
    model, context, tuples, scores = setup
    for i in (0, 7, 50, 119):
        logits = model(context, tuples[i].expand(len(LENGTHS), -1))
        one_pass = torch.stack([x.log_softmax(-1)[:, tuples[i, t]] for t, x in enumerate(logits)], 1)
        torch.testing.assert_close(one_pass, scores[:, i], atol=1e-5, rtol=0)


def test_emulated_fp32_equals_native(setup):
    model, context, tuples, scores = setup
    emulated = score_tuples(model, context, tuples[None].expand(len(LENGTHS), -1, -1), Emulated("fp32"))
    torch.testing.assert_close(emulated, scores, atol=2e-5, rtol=0)


def test_unpruned_search_finds_every_tuple_in_order(setup):
    model, context, _, scores = setup
    found = beam_search(model, context, beam_width=[5, 20, 120])
    torch.testing.assert_close(found.scores, scores.sum(-1).sort(1, descending=True).values, atol=1e-5, rtol=0)


@pytest.mark.parametrize("constrained", [True, False])
def test_items_are_ranked_and_exclusions_kept(setup, constrained: bool):
    model, context, tuples, scores = setup
    generator = torch.Generator().manual_seed(3)
    leaf = torch.randint(len(tuples), (40,), generator=generator)
    ids = np.arange(40) * 3 + 1
    trie = Trie.build(ids, tuples[leaf].numpy())
    excluded = Excluded(torch.tensor([0, 0, 0, 1, 3]), torch.tensor([1, 5, 5, 7, 20]))
    found = beam_search(
        model,
        context,
        beam_width=[5, 20, 120],
        trie=trie,
        excluded=excluded,
        num_results=45,
        constrained=constrained,
        ops=Emulated("fp32"),
    )
    for b in range(len(LENGTHS)):
        banned = excluded.item[excluded.request == b].tolist()
        wanted = [i for i in range(40) if i not in banned]
        got = [int(i) for i in found.item_ids[b] if i >= 0]
        assert sorted(got) == ids[wanted].tolist()
        expected = scores.sum(-1)[b, leaf[[(i - 1) // 3 for i in got]]]
        torch.testing.assert_close(found.item_scores[b, : len(got)], expected, atol=2e-5, rtol=0)
        assert (found.item_scores[b, : len(got)].diff() <= 0).all()


def e4m3_values() -> np.ndarray:
    """The 127 finite non-negative values by code, from the format's definition."""
    code = np.arange(127)
    exponent, mantissa = code >> 3, code & 7
    return np.where(exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))


def test_e4m3_rounds_to_nearest_even_and_saturates():
    table = e4m3_values()
    assert dequantize_e4m3(torch.arange(127, dtype=torch.uint8)).tolist() == table.tolist()
    middle = (table[1:] + table[:-1]) / 2  # exact in FP32
    code = np.arange(126)
    tie = np.where(code % 2 == 0, code, code + 1)
    below = np.nextafter(middle.astype(np.float32), np.float32(0))
    above = np.nextafter(middle.astype(np.float32), np.float32(1e9))
    large = np.array([448, 463.9, 464, 465, 480, 1e30, np.inf], np.float32)
    cases = np.concatenate([table, middle, below, above, large]).astype(np.float32)
    want = np.concatenate([np.arange(127), tie, code, code + 1, np.full(len(large), 126)])
    assert to_e4m3(torch.from_numpy(cases)).tolist() == want.tolist()
    assert to_e4m3(torch.from_numpy(-cases)).tolist() == (want + 128).tolist()
    assert int(to_e4m3(torch.tensor([float("nan")]))[0]) & 127 == 127
