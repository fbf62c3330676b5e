#include <algorithm>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/parallel.h"
#include "backends/cpu/vector_math.h"
#include "core/arena.h"
#include "core/multiversion.h"
#include "ops/moe.h"

namespace onerec::cpu {
namespace {

// scores[e] of one row: each expert's own probability, or its share.
ONEREC_MULTIVERSION
void score_sigmoid(const float* logits, std::int64_t experts, float* scores) {
#pragma omp simd
  for (std::int64_t e = 0; e < experts; ++e) scores[e] = 1.0f / (1.0f + exp_of(-logits[e]));
}

ONEREC_MULTIVERSION
void score_softmax(const float* logits, std::int64_t experts, float* scores) {
  const float largest = *std::max_element(logits, logits + experts);
  float total = 0.0f;
#pragma omp simd reduction(+ : total)
  for (std::int64_t e = 0; e < experts; ++e) {
    scores[e] = exp_of(logits[e] - largest);
    total += scores[e];
  }
#pragma omp simd
  for (std::int64_t e = 0; e < experts; ++e) scores[e] /= total;
}

// Keeps the chosen experts sorted. A later expert moves up only past strictly smaller ones, which puts ties in order of
// index; a NaN moves nothing, so that top_k distinct experts come out of any input.
void choose_experts(const RouteParams& p, const float* scores, std::int32_t* selected, float* weights) {
  std::int64_t chosen = 0;
  for (std::int64_t e = 0; e < p.experts; ++e) {
    const float ranking = scores[e] + p.bias[e];
    if (chosen == p.top_k && !(ranking > weights[chosen - 1])) continue;
    std::int64_t place = chosen < p.top_k ? chosen++ : chosen - 1;
    for (; place > 0 && ranking > weights[place - 1]; --place) {
      weights[place] = weights[place - 1];
      selected[place] = selected[place - 1];
    }
    weights[place] = ranking;
    selected[place] = static_cast<std::int32_t>(e);
  }
}

void route_row(const RouteParams& p, std::int64_t r, float* scores) {
  std::int32_t* selected = p.selected + r * p.top_k;
  float* weights = p.weights + r * p.top_k;
  const auto score = p.score == RouterScore::kSigmoid ? &score_sigmoid : &score_softmax;
  score(p.logits.row<float>(r), p.experts, scores);
  choose_experts(p, scores, selected, weights);
  // The biased scores rank; the bare ones weigh.
  float sum = 0.0f;
  for (std::int64_t j = 0; j < p.top_k; ++j) sum += scores[selected[j]];
  const float divisor = p.normalize == RouterNormalize::kSum ? sum + 1e-20f : 1.0f;
  for (std::int64_t j = 0; j < p.top_k; ++j) weights[j] = scores[selected[j]] / divisor * p.scaling_factor;
}

// A counting sort in order of (row, choice). One thread: there are a few thousand pairs at most.
void sort_by_expert(const RouteParams& p, std::int64_t rows, std::int32_t* cursor) {
  const std::int64_t pairs = rows * p.top_k;
  const auto alignment = static_cast<std::int32_t>(p.alignment);
  std::fill_n(p.offsets, p.experts + 1, 0);
  for (std::int64_t i = 0; i < pairs; ++i) ++p.offsets[p.selected[i] + 1];
  for (std::int64_t e = 0; e < p.experts; ++e) {
    p.offsets[e + 1] = p.offsets[e] + (p.offsets[e + 1] + alignment - 1) / alignment * alignment;
    cursor[e] = p.offsets[e];
  }
  for (std::int64_t i = 0; i < pairs; ++i) {
    const std::int32_t slot = cursor[p.selected[i]]++;
    p.slots[i] = slot;
    p.sources[slot] = static_cast<std::int32_t>(i / p.top_k);
  }
  for (std::int64_t e = 0; e < p.experts; ++e) std::fill(p.sources + cursor[e], p.sources + p.offsets[e + 1], -1);
}

struct Scratch {
  std::int32_t* cursor;  // [experts]
  float* scores;         // [threads, experts]

  Scratch(Arena& arena, const RouteParams& p, int threads)
      : cursor(arena.allocate_array<std::int32_t>(p.experts)),
        scores(arena.allocate_array<float>(p.experts * threads)) {}
};

}  // namespace

std::size_t CpuBackend::route_workspace(const RouteParams& params) const {
  Arena arena;
  Scratch(arena, params, device_.threads());
  return arena.used();
}

void CpuBackend::route(Stream& stream, const RouteParams& params, Workspace workspace) {
  Arena arena(workspace.data, workspace.bytes);
  const Scratch scratch(arena, params, device_.threads());
  submit(stream, [p = params, scratch] {
    const std::int64_t rows = live(p.rows);
    for_ranges(rows, p.experts * 8, [&](int rank, std::int64_t begin, std::int64_t end) {
      float* scores = scratch.scores + rank * p.experts;
      for (std::int64_t r = begin; r < end; ++r) route_row(p, r, scores);
    });
    sort_by_expert(p, rows, scratch.cursor);
  });
}

}  // namespace onerec::cpu
