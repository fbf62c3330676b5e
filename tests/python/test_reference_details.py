"""The reference's parts: names and files of its weights, pre-quantised weights, operand taps, expert paths."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from model_case import Case  # noqa: E402
from model_grid import MOE, NAMED, grid, random_items, small_config  # noqa: E402
from plain_numbers import code_scale, dequantized, e4m3, quantized_weight  # noqa: E402

from onerec_engine.checkpoint import Checkpoint  # noqa: E402
from onerec_engine.reference import (  # noqa: E402
    Emulated,
    OneRecV2,
    Operand,
    Quantized,
    Trie,
    beam_search,
    load_model,
    random_state_dict,
    save_checkpoint,
)
from onerec_engine.reference.numerics import RMSNorm  # noqa: E402
from onerec_engine.reference.quantize import (  # noqa: E402
    dequantize_e4m3,
    norm_code_scale,
    quantize_block_128x128,
    quantize_norm_rows,
    quantize_row_blocks,
    quantize_rows,
    root_power,
)
from onerec_engine.weights import expected_tensors  # noqa: E402

GRID = grid(drawn=40)
MIXTURE = small_config(**MOE)


@pytest.mark.parametrize("name", GRID)
def test_state_dict_has_the_checkpoints_tensors(name: str):
    state = OneRecV2(GRID[name]).state_dict()
    want = {spec.name: spec.shape for spec in expected_tensors(GRID[name])}
    assert {key: tuple(value.shape) for key, value in state.items()} == want


@pytest.mark.parametrize("limit", [None, 1, 4000, 1 << 30])
@pytest.mark.parametrize("name", ["moe", "everything"])
def test_saved_weights_are_read_back(tmp_path: Path, name: str, limit: int | None):
    config = NAMED[name]
    state = random_state_dict(config)
    items = random_items(config.codebook_sizes)
    save_checkpoint(tmp_path, config, state, items.ids, items.codes, torch.float32, max_shard_bytes=limit)
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    if limit is None:
        assert shards == ["model.safetensors"]
    else:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"]) == set(state)
        assert sorted(set(index["weight_map"].values())) == shards
        assert index["metadata"]["total_size"] == sum(4 * value.numel() for value in state.values())
        assert (len(shards) == len(state)) == (limit == 1)
        assert (len(shards) == 1) == (limit == 1 << 30)
    loaded = load_model(tmp_path)
    assert loaded.config == dataclasses.replace(config, torch_dtype="float32")
    with Checkpoint(tmp_path) as checkpoint:
        for key, value in loaded.state_dict().items():
            assert torch.equal(value, state[key])
            assert np.array_equal(checkpoint.read_float32(key), state[key].numpy())


def test_saved_in_16_bits_with_vectors_in_32(tmp_path: Path):
    state = random_state_dict(MIXTURE)
    items = random_items(MIXTURE.codebook_sizes)
    save_checkpoint(tmp_path, MIXTURE, state, items.ids, items.codes, keep_fp32=True)
    kinds = {spec.name: spec.kind for spec in expected_tensors(MIXTURE)}
    for key, value in load_model(tmp_path).state_dict().items():
        exact = state[key] if kinds[key] == "vector" else state[key].bfloat16().float()
        assert torch.equal(value, exact), key


@pytest.mark.parametrize("shape", [(1, 1), (3, 127), (5, 128), (7, 129), (130, 300), (257, 16)])
def test_quantisers_follow_the_formula(shape: tuple[int, int]):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(shape) * np.exp(rng.standard_normal((shape[0], 1)) * 4)).astype(np.float32)
    x[rng.random(shape) < 0.1] = 0
    x[0] *= 1e-20  # below the smallest scale
    given = torch.from_numpy(x)
    for by_block, quantise in [(False, quantize_rows), (True, quantize_block_128x128)]:
        codes, scales = quantise(given)
        values, want = quantized_weight(x.astype(np.float64), by_block=by_block)
        assert np.array_equal(dequantized(codes.numpy()), values)
        repeated = scales.numpy().repeat(128, 0)[: shape[0]] if by_block else scales.numpy()[:, None]
        assert np.array_equal(repeated, want)
    codes, scales = quantize_row_blocks(given)
    for b in range(scales.shape[1]):
        columns = slice(128 * b, 128 * b + 128)
        part = torch.from_numpy(x[:, columns].copy())
        assert torch.equal(codes[:, columns], quantize_rows(part)[0])
        assert torch.equal(scales[:, b], quantize_rows(part)[1])


@pytest.mark.parametrize("gamma_magnitude", [1e-3, 1.0, 50.0])
@pytest.mark.parametrize("width", [1, 127, 128, 1000])
def test_codes_of_norms_follow_the_formula(width: int, gamma_magnitude: float):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((40, width)) * np.exp(rng.standard_normal((40, 1)) * 8)).astype(np.float32)
    x[0], x[1] = 0, x[1] * 1e-25
    gamma = (rng.standard_normal(width) * gamma_magnitude).astype(np.float32)
    eps = 1e-6
    codes, scales = quantize_norm_rows(torch.from_numpy(x), torch.from_numpy(gamma), eps)
    exact = x.astype(np.float64)
    want = np.array([code_scale(row, gamma, eps) for row in exact])
    np.testing.assert_allclose(scales.numpy(), want, rtol=1e-6)
    # A power of two times the reciprocal root, by which the codes are those of an exact quotient.
    power = np.exp2(np.rint(np.log2(want * np.sqrt((exact**2).mean(1) + eps))))
    np.testing.assert_array_equal(codes.numpy(), e4m3((x * gamma) / power[:, None].astype(np.float32)))


def test_powers_of_two_of_norms():
    nan, inf = torch.nan, torch.inf
    mean_squares = [1.0, 0.5, 0.49, 1.99, 2.0, 2.0**-97, 2.0**97, 3e38, 1e-42, 0.0, inf, nan]
    powers = [1.0, 1.0, 0.5, 1.0, 2.0, 2.0**-48, 2.0**48, 2.0**48, 2.0**-48, 2.0**-48, 2.0**48, 2.0**48]
    assert root_power(torch.tensor(mean_squares)).tolist() == powers
    magnitudes = [1.0, 0.5, 1.0001, 0.9999, 0.0, 1e-42, 2.0**-41, 2.0**40, 2.0**41, inf, nan]
    scales = [0.5, 0.25, 1.0, 0.5, 2.0**-41, 2.0**-41, 2.0**-41, 2.0**39, 2.0**39, 2.0**39, 2.0**-41]
    assert norm_code_scale(torch.tensor(magnitudes)).tolist() == scales


def test_codes_of_norms_of_rows_that_are_not_finite():
    """NaN wherever the codes are multiplied by the scale; 1e20 has an infinite square."""
    row = torch.tensor([1.0, -2.0, 0.5, 3.0])
    x = torch.stack(
        [torch.where(torch.arange(4) == 2, value, row) for value in (torch.nan, torch.inf, -torch.inf, 1e20)]
    )
    codes, scales = quantize_norm_rows(x, torch.ones(4), 1e-6)
    assert scales.isnan().all()
    assert int(codes[0, 2]) & 127 == 127


def test_only_the_tensor_of_a_norm_is_coded_as_one():
    """Not another tensor of the same values, and only in codes per row."""
    ops, norm = Emulated("fp8"), RMSNorm(256, 1e-6)
    x = torch.randn(2, 3, 256, generator=torch.Generator().manual_seed(0))
    y = ops.norm(x, norm)
    by_norm = quantize_norm_rows(x.view(6, 256), norm.weight, 1e-6)
    for scheme, given, want in [
        ("channel", y, by_norm),
        ("channel", y.clone(), quantize_rows(y.view(6, 256))),
        ("block", y, quantize_row_blocks(y.view(6, 256))),
    ]:
        for repeats in (1, 2):
            got = ops.operand("a.linear", given, scheme, repeats=repeats)
            assert isinstance(got, Quantized)
            for mine, theirs in zip(got, want, strict=True):
                assert torch.equal(mine, theirs.repeat_interleave(repeats, 0))


def quantized_by_hand(case: Case, experts: str) -> dict[str, Quantized]:
    out = {}
    for spec in expected_tensors(case.config):
        if spec.kind not in ("linear", "expert"):
            continue
        by_block = spec.kind == "expert" and experts == "block"
        values, scales = quantized_weight(case.weights[spec.name].astype(np.float64), by_block=by_block)
        codes = torch.from_numpy(e4m3(values.astype(np.float32)))
        kept = scales[::128] if by_block else scales[:, 0]
        out[spec.name] = Quantized(codes, torch.from_numpy(kept.astype(np.float32)))
    return out


@pytest.mark.parametrize("experts", ["block", "channel"])
def test_prequantised_weights_are_used(experts: str):
    case = Case(NAMED["blocks"], lengths=[3, 5])
    weights = quantized_by_hand(case, experts)
    want = case.reference(Emulated("fp8", experts=experts))
    assert np.array_equal(case.reference(Emulated("fp8", experts=experts, weights=weights)), want)
    for name in ("model.layers.0.cross_attn.q_proj.weight", "model.layers.1.mlp.experts.2.down_proj.weight"):
        doubled = weights | {name: Quantized(weights[name].codes, weights[name].scales * 2)}
        other = Case(NAMED["blocks"], lengths=[3, 5], factors={name: 2.0})
        got = case.reference(Emulated("fp8", experts=experts, weights=doubled))
        assert np.array_equal(got, other.reference(Emulated("fp8", experts=experts)))
        assert not np.array_equal(got, want)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp8"])
def test_tap_sees_every_linear(precision: str):
    case = Case(NAMED["everything"] if precision == "bf16" else MIXTURE, lengths=[3, 0, 5], tuples=4)
    seen: list[tuple[str, int, Operand]] = []
    want = case.reference(Emulated(precision))

    def tap(name: str, step: int, operand: Operand) -> Operand:
        seen.append((name, step, operand))
        return Quantized(*(x.clone() for x in operand)) if isinstance(operand, Quantized) else operand.clone()

    assert np.array_equal(case.reference(Emulated(precision, tap=tap)), want)
    assert [(name, step) for name, step, _ in seen] == tapped_names(case)
    quantised = {spec.name for spec in expected_tensors(case.config) if spec.kind in ("linear", "expert")}
    for name, step, operand in seen:
        prefix = name.rsplit(".", 1)[0]
        codes = any(weight.startswith(f"{prefix}.") for weight in quantised) and not name.endswith("mlp.gate")
        assert isinstance(operand, Quantized) == (precision == "fp8" and codes)
        if not name.startswith("context."):
            rows = (12 if step else 3) * (2 if ".experts." in name else 1)
            assert (operand.codes if isinstance(operand, Quantized) else operand).shape[0] == rows


def tapped_names(case: Case) -> list[tuple[str, int]]:
    c = case.config
    names = [(f"context.pathways.{p.name}.proj.{i}", 0) for p in c.pathways for i in range(len(p.hidden_sizes) + 1)]
    for step in range(c.levels):
        for layer in range(c.num_hidden_layers):
            parts = ["cross_attn.q_proj", "cross_attn.o_proj", "self_attn.qkv_proj", "self_attn.o_proj"]
            if c.is_moe_layer(layer):
                parts += ["mlp.gate", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
                parts += ["mlp.shared_experts.gate_up_proj", "mlp.shared_experts.down_proj"]
            else:
                parts += ["mlp.gate_up_proj", "mlp.down_proj"]
            names += [(f"model.layers.{layer}.{part}", step) for part in parts]
        names.append((f"lm_heads.{step}", step))
    return names


def test_a_replaced_operand_is_what_is_multiplied():
    case = Case(MIXTURE, lengths=[3, 5])

    def without(operand: Operand) -> Operand:
        if isinstance(operand, Quantized):
            return Quantized(torch.zeros_like(operand.codes), operand.scales)
        return torch.zeros_like(operand)

    for name in ("model.layers.0.mlp.down_proj", "model.layers.1.cross_attn.o_proj", "lm_heads.1"):
        for precision in ("bf16", "fp8"):
            tapped = Emulated(precision, tap=lambda at, _, x, name=name: without(x) if at == name else None)
            other = Case(MIXTURE, lengths=[3, 5], factors={f"{name}.weight": 0.0})
            np.testing.assert_array_equal(case.reference(tapped), other.reference(Emulated(precision)))


def test_tapped_rows_of_experts_are_in_order_of_selection():
    """Without what every row's second expert gets, a mixture of two selected experts is one of the first alone."""
    routing = MOE | {"norm_topk_prob": False}
    two = Case(small_config(**routing), lengths=[3, 5])
    one = Case(small_config(**(routing | {"num_experts_per_tok": 1})), lengths=[3, 5])

    def tap(name: str, step: int, operand: Operand) -> Operand | None:
        if not name.endswith("mlp.experts.down_proj") or not isinstance(operand, Quantized):
            return None
        codes = operand.codes.clone()
        codes[1::2] = 0
        return Quantized(codes, operand.scales)

    got = two.reference(Emulated("fp8", tap=tap))
    np.testing.assert_array_equal(got, one.reference(Emulated("fp8")))


def test_codes_are_refused_where_values_are_multiplied():
    case = Case(MIXTURE, lengths=[3])
    with pytest.raises(TypeError, match="never quantised"):
        case.reference(Emulated("fp8", tap=lambda _, __, x: x if isinstance(x, Quantized) else Quantized(x, x)))


@pytest.mark.parametrize("top_k", [1, 2])
def test_both_ways_through_the_experts_agree(top_k: int):
    """Sorting rows by expert, which many experts make worthwhile, against all experts on all rows."""
    config = small_config(**(MOE | {"n_routed_experts": 4 * top_k + 1, "num_experts_per_tok": top_k}))
    case = Case(config, lengths=[3, 0, 7])
    (mixture,) = case.model.moe_layers()
    rows = torch.randn(19, config.hidden_size, generator=torch.Generator().manual_seed(0))
    for many in (rows, rows[:1], rows[:0]):
        chosen, weights = mixture.gate(many, Emulated("fp32"))
        dense = mixture._all_experts(many, chosen, weights)
        torch.testing.assert_close(mixture._sorted_experts(many, chosen, weights), dense, atol=1e-5, rtol=0)
        torch.testing.assert_close(mixture._emulated(many, chosen, weights, Emulated("fp32")), dense, atol=1e-5, rtol=0)
    np.testing.assert_allclose(case.reference(), case.reference(Emulated("fp32")), atol=1e-5, rtol=0)


def test_router_ties_go_to_the_smaller_index():
    case = Case(MIXTURE, lengths=[3])
    (mixture,) = case.model.moe_layers()
    with torch.no_grad():
        mixture.gate.weight.zero_()
        mixture.gate.e_score_correction_bias.copy_(torch.tensor([0.0, 0.5, 0.25, 0.5, 0.25, 0.5]))
    chosen, weights = mixture.gate(torch.randn(4, MIXTURE.hidden_size), Emulated("fp32"))
    assert chosen.tolist() == [[1, 3]] * 4
    torch.testing.assert_close(weights, torch.full((4, 2), 0.5))


@pytest.mark.parametrize("name", ["plain", "moe", "everything"])
def test_nothing_to_compute(name: str):
    """A batch without requests, and requests without context tokens."""
    case = Case(NAMED[name], lengths=[0, 0])
    np.testing.assert_allclose(case.reference(), case.plain(), atol=1e-5, rtol=0)
    case.tokens, case.tuples = [], case.tuples[:0]
    trie = Trie.build(case.items.ids, case.items.codes)
    for ops in (None, Emulated("fp32"), Emulated("fp8")):
        assert case.reference(ops).shape == case.tuples.shape
        found = beam_search(case.model, case.context, beam_width=4, trie=trie, ops=ops)
        assert found.codes.shape == (0, 4, case.config.levels)


@pytest.mark.parametrize(("gamma", "most"), [("ones", 1.02), ("lognormal", 1.15), ("one of 32", 1.05)])
def test_codes_of_norms_are_about_as_accurate_as_those_by_the_largest_value(gamma: str, most: float):
    """Room for a row's growth costs little, though most factors may be small beside the largest one."""
    random = torch.Generator().manual_seed(0)
    x, factors = torch.randn(64, 1792, generator=random), torch.ones(1792)
    if gamma == "lognormal":
        factors = torch.randn(1792, generator=random).exp()
    elif gamma == "one of 32":
        factors[0] = 32
    want = Emulated("fp32").norm(x, RMSNorm(1792, 1e-6)).detach() * factors

    def error(coded: tuple[torch.Tensor, torch.Tensor]) -> float:
        got = dequantize_e4m3(coded[0]) * coded[1][:, None]
        return float((got - want)[:, 1:].norm() / want[:, 1:].norm())

    assert error(quantize_norm_rows(x, factors, 1e-6)) <= most * error(quantize_rows(want))
