"""Single ops from Python: each against torch, and what recording them does."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from op_runner import Ops
from op_tensors import BLOCK, Beams, Operand
from torch import Tensor
from torch.nn import functional

from onerec_engine._C import OpRecording
from onerec_engine.errors import EngineError
from onerec_engine.reference.quantize import quantize_norm_rows

E4M3_MAX = 448.0


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def ops(request: pytest.FixtureRequest) -> Iterator[Ops]:
    """A runner; tensors made in the test lie on its device."""
    if request.param == "cuda":
        request.getfixturevalue("gpu")
        if not torch.cuda.is_available():
            pytest.skip("this torch has no GPU")
    torch.manual_seed(0)
    with torch.device(request.param):
        yield Ops(request.param, threads=2)


def close(got: Tensor, want: Tensor, tolerance: float) -> bool:
    return bool((got.double() - want.double()).norm() <= tolerance * want.double().norm())


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def quantized(x: Tensor) -> Operand:
    """Codes and one scale per row, as docs/numerics.md has them."""
    # On the CPU: on a GPU torch divides by a number by multiplying with its reciprocal.
    values = x.float().cpu()
    scales = (values.abs().amax(-1) / E4M3_MAX).clamp(min=1e-12)
    codes = (values * (1.0 / scales)[..., None]).to(torch.float8_e4m3fn)
    return Operand(codes.to(x.device), scales.to(x.device))


def test_linear_with_residual(ops: Ops) -> None:
    x, w, h = torch.randn(5, 32).bfloat16(), torch.randn(48, 32).bfloat16(), torch.randn(5, 48).bfloat16()
    y, packed = torch.full_like(h, torch.nan), ops.pack(w)
    ops.now(lambda: ops.linear(Operand(x), packed, y, residual=h))
    assert close(y, x.double() @ w.double().t() + h.double(), 4e-3)


def test_linear_of_codes(ops: Ops) -> None:
    x, w = quantized(torch.randn(7, 64)), quantized(torch.randn(48, 64))
    y, packed = torch.full((7, 48), torch.nan), ops.pack(w.values, w.scales)
    ops.now(lambda: ops.linear(x, packed, y))
    assert close(y, x.dequantized().double() @ w.dequantized().double().t(), 2e-3)


def test_grouped_linear_of_blocks(ops: Ops) -> None:
    counts, n, k = (4, 0, 5), 2 * BLOCK, 2 * BLOCK
    alignment = ops.runner.grouped_alignment(sum(counts), len(counts), 1)
    sizes = [-(-count // alignment) * alignment for count in counts]
    offsets, rows = int32(0, sizes[0], sizes[0], sum(sizes)), sum(sizes)
    x, values = Operand.empty(rows, k, "block", ops.device), torch.randn(rows, k)
    ops.now(lambda: ops.quantize(values, x))
    codes = torch.randn(len(counts), n, k).to(torch.float8_e4m3fn)
    scales = torch.rand(len(counts), n // BLOCK, k // BLOCK) + 0.5
    y, packed = torch.full((rows, n), torch.nan), ops.pack(codes, scales)
    ops.now(lambda: ops.grouped_linear(x, packed, offsets, y, alignment))
    weights = codes.double() * scales.repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2).double()
    given = x.dequantized().double()
    assert close(y[:4], given[:4] @ weights[0].t(), 2e-3)
    assert close(y[sizes[0] :][:5], given[sizes[0] :][:5] @ weights[2].t(), 2e-3)


def normed_codes(x: Tensor, gamma: Tensor, eps: float) -> Operand:
    """Codes of a norm with one scale per row, as docs/numerics.md has them."""
    mean_square = x.double().square().mean(-1)
    power = 2.0 ** (torch.frexp(mean_square)[1] // 2) * 0.5 * 2.0 ** gamma.abs().amax().double().log2().ceil()
    scales = power / (mean_square + eps).sqrt()
    codes = (x.float() * gamma / power[:, None].float()).to(torch.float8_e4m3fn)
    return Operand(codes, scales.float())


def test_norms_and_quantisers(ops: Ops) -> None:
    x, gamma = torch.randn(6, 64).bfloat16(), torch.rand(64) + 0.5
    largest = float(gamma.max())
    y, codes = torch.full_like(x, torch.nan), Operand.empty(6, 64, "row", ops.device)
    ops.now(lambda: ops.rms_norm(x, gamma, 1e-6, y=y, quantized=codes, gamma_magnitude=largest))
    want = functional.rms_norm(x.double(), (64,), gamma.double(), 1e-6)
    assert close(y, want, 3e-3)
    assert close(codes.dequantized(), want, 4e-2)
    by_row = normed_codes(x, gamma, 1e-6)
    assert torch.equal(codes.values.view(torch.uint8), by_row.values.view(torch.uint8))
    assert close(codes.scales, by_row.scales, 1e-6)
    blocks = Operand.empty(6, 64, "block", ops.device)
    ops.now(lambda: ops.rms_norm(x, gamma, 1e-6, quantized=codes, quantized_blocks=blocks, gamma_magnitude=largest))
    assert close(blocks.dequantized(), want, 4e-2)
    by_head = torch.full_like(x, torch.nan)
    ops.now(lambda: ops.rms_norm(x, gamma[:16], 1e-6, y=by_head))
    grouped = functional.rms_norm(x.double().view(6, 4, 16), (16,), gamma[:16].double(), 1e-6)
    assert close(by_head, grouped.view(6, 64), 3e-3)
    ops.now(lambda: ops.quantize(x, codes))
    assert torch.equal(codes.values.view(torch.uint8), quantized(x).values.view(torch.uint8))


def test_norm_codes_of_extreme_rows(ops: Ops) -> None:
    """Rows whose squares add up to the same in any order, so that the reference's codes are the engine's."""
    eps, width = 1e-6, 64
    x = torch.tensor([1.0, -2.0, 0.5, 4.0]).repeat(9, width // 4)
    x *= torch.tensor([1.0, 0.0, 1e-20, 2.0**-40, 2.0**40, 2.0**58, 1e20, 1.0, 1.0])[:, None]
    x[7, 3], x[8, 5] = torch.nan, -torch.inf
    gamma = torch.randn(width) * torch.rand(width)
    codes = Operand.empty(len(x), width, "row", ops.device)
    ops.now(lambda: ops.rms_norm(x, gamma, eps, quantized=codes, gamma_magnitude=float(gamma.abs().max())))
    want, scales = (part.cpu() for part in quantize_norm_rows(x.cpu(), gamma.cpu(), eps))
    got = codes.values.view(torch.uint8).cpu()
    nan = want & 127 == 127
    assert torch.equal(got & 127 == 127, nan)
    assert torch.equal(got[~nan], want[~nan])
    torch.testing.assert_close(codes.scales.cpu(), scales, rtol=1e-6, atol=0, equal_nan=True)
    assert codes.dequantized().isnan().all(1).tolist() == [False] * 6 + [True] * 3


def test_swiglu(ops: Ops) -> None:
    gate_up = torch.randn(6, 96)
    y = torch.full((6, 48), torch.nan)
    ops.now(lambda: ops.swiglu(gate_up, y=y))
    assert close(y, functional.silu(gate_up[:, :48].double()) * gate_up[:, 48:].double(), 1e-6)


def test_cross_attention(ops: Ops) -> None:
    heads, width, rows, tokens = 2, 16, 3, 5
    q = torch.randn(2 * rows, heads * width)
    kv = torch.randn(2 * tokens, heads * width)
    out = torch.full_like(q, torch.nan)
    context_offsets, row_offsets = int32(0, tokens, 2 * tokens), int32(0, rows, 2 * rows)

    def issue() -> None:
        ops.cross_attention(
            q,
            kv,
            kv,
            out,
            context_offsets=context_offsets,
            row_offsets=row_offsets,
            request_rows=rows,
            request_tokens=tokens,
            heads=heads,
            kv_heads=heads,
            scale=0.25,
        )

    ops.now(issue)
    split = [x.double().view(2, -1, heads, width).transpose(1, 2) for x in (q, kv, kv)]
    want = functional.scaled_dot_product_attention(*split, scale=0.25).transpose(1, 2).reshape(q.shape)
    assert close(out, want, 1e-5)


def test_self_attention_follows_the_ancestry(ops: Ops) -> None:
    heads, width = 2, 16
    steps = [torch.randn(rows, 3 * heads * width) for rows in (1, 4, 4)]
    ancestry = [int32(0, 0, 0, 0), int32(2, 0, 3, 2)]
    out = torch.full((4, heads * width), torch.nan)
    ops.now(lambda: ops.self_attention(steps, ancestry, out, heads=heads, kv_heads=heads, scale=0.25))
    rows = [steps[0][ancestry[0]], steps[1][ancestry[1]], steps[2]]
    parts = [row.double().view(4, 3, heads, width) for row in rows]
    q, k, v = parts[2][:, 0], torch.stack([p[:, 1] for p in parts], 2), torch.stack([p[:, 2] for p in parts], 2)
    want = functional.scaled_dot_product_attention(q.unsqueeze(2), k, v, scale=0.25).flatten(1)
    assert close(out, want, 1e-5)
    codes = Operand.empty(4, heads * width, "row", ops.device)
    ops.now(lambda: ops.self_attention(steps, ancestry, codes, heads=heads, kv_heads=heads, scale=0.25))
    assert torch.equal(codes.dequantized(), quantized(out).dequantized())


def test_routing_there_and_back(ops: Ops) -> None:
    rows, experts, top_k, width = 6, 4, 2, 32
    alignment = ops.runner.grouped_alignment(rows, experts, top_k)
    logits, bias, x = torch.randn(rows, experts), torch.zeros(experts), torch.randn(rows, width)
    selected, slots = (torch.full((rows, top_k), -1, dtype=torch.int32) for _ in range(2))
    weights, offsets = torch.empty(rows, top_k), torch.empty(experts + 1, dtype=torch.int32)
    sources = torch.full((rows * top_k + experts * alignment,), -1, dtype=torch.int32)
    sorted_x, h = torch.full((sources.shape[0], width), torch.nan), torch.randn(rows, width)
    before = h.clone()

    def issue() -> None:
        ops.route(
            logits,
            bias,
            top_k=top_k,
            alignment=alignment,
            selected=selected,
            weights=weights,
            offsets=offsets,
            slots=slots,
            sources=sources,
        )
        ops.gather_rows(Operand(x), sources, Operand(sorted_x), offsets[experts:])
        ops.moe_combine(sorted_x, slots, weights, h)

    ops.now(issue)
    score, chosen = torch.sigmoid(logits).topk(top_k)
    assert torch.equal(selected.long(), chosen)
    assert close(weights, score / score.sum(-1, keepdim=True), 1e-6)
    assert close(h, before + x, 1e-6)


@pytest.mark.parametrize("catalogue", [None, [[0, 1], [0, 2], [3, 0]]])
def test_beam_select(ops: Ops, catalogue: list[list[int]] | None) -> None:
    batch, width, codebook = 2, 2, 6
    logits = torch.randn(batch, codebook)
    current, following = Beams.empty(batch, 2, 0, ops.device), Beams.empty(batch * width, 2, 1, ops.device)
    current.scores.zero_()
    current.states.zero_()
    trie = None if catalogue is None else ops.trie(np.array(catalogue), [codebook, codebook])
    status, constrained = torch.zeros(batch, dtype=torch.int32), torch.ones(batch, dtype=torch.uint8)
    row_offsets, next_offsets = int32(0, 1, 2), int32(0, 2, 4)

    def issue() -> None:
        ops.beam_select(
            0,
            logits,
            codebook=codebook,
            row_offsets=row_offsets,
            next_offsets=next_offsets,
            request_rows=1,
            request_next=width,
            current=current,
            following=following,
            status=status,
            constrained=constrained,
            trie=trie,
        )

    ops.now(issue)
    scores = functional.log_softmax(logits, -1)
    if catalogue is not None:
        assert [trie.edges(level) for level in range(2)] == [2, 3]  # type: ignore[union-attr]
        scores = scores + torch.full((codebook,), -torch.inf).index_fill(0, torch.tensor([0, 3]), 0.0)
    best, place = scores.topk(width)
    assert close(following.scores.view(batch, width), best, 1e-6)
    assert torch.equal(following.codes[:, 0].view(batch, width).long(), place)
    assert following.ancestry[0].tolist() == [0, 0, 1, 1]


def test_a_recording_reads_its_inputs_when_replayed(ops: Ops) -> None:
    x, y = torch.randn(3, 32), torch.zeros(3, 16)
    weight = torch.randn(16, 32)

    def recorded() -> OpRecording:
        packed = ops.pack(weight)
        return ops.record(lambda: ops.linear(Operand(x), packed, y))

    recording = recorded()
    assert not y.any()
    for _ in range(2):
        x.copy_(torch.randn(3, 32))
        ops.wait_for_torch()
        ops.runner.poison(0xFF)
        ops.runner.replay(recording)
        ops.synchronize()
        assert close(y, x.double() @ weight.double().t(), 1e-5)


def test_a_failed_recording_leaves_the_runner_usable(ops: Ops) -> None:
    x, y = torch.randn(3, 32), torch.empty(3, 32)

    def issue() -> None:
        ops.swiglu(x, y=y[:, :16])
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        ops.record(issue)
    with pytest.raises(ValueError, match=r"\[swiglu\]"):
        ops.now(lambda: ops.swiglu(x, y=y[:2, :16]))
    ops.now(lambda: ops.swiglu(x, y=y[:, :16]))


def test_recordings_do_not_nest(ops: Ops) -> None:
    with pytest.raises(EngineError, match="recording already"):
        ops.record(lambda: ops.record(lambda: None) and None)


def test_weights_are_checked(ops: Ops) -> None:
    with pytest.raises(ValueError, match="want values for 'dense'"):
        ops.runner.pack_linear(np.zeros(16, np.uint8), dtype="float8_e4m3", format="dense", outputs=4, inputs=4)
    with pytest.raises(ValueError, match="uint8"):
        ops.runner.pack_linear(np.zeros(4, np.float32), dtype="float32", format="dense", outputs=2, inputs=2)
