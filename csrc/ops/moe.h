// Mixture of experts: choose experts per row, sort the rows by expert, and add the experts' outputs up.
#pragma once

#include <algorithm>

#include "ops/context.h"

namespace onerec {

enum class RouterScore : std::uint8_t { kSigmoid, kSoftmax };
enum class RouterNormalize : std::uint8_t { kNone, kSum };

// Selects the top_k experts with the largest score + bias, ties to the smaller index, in that order; weights are the
// bare scores, divided by (their sum + 1e-20) if `normalize` is kSum, times `scaling_factor` (DeepSeek-V3, arXiv
// 2412.19437, section 2.1.2). Then counts per expert and the place of every (row, choice) in the expert-sorted order;
// within an expert by (row, choice).
//
// offsets[e] are multiples of `alignment`: the rows of expert e start there, and padding follows them up to
// offsets[e + 1]. Padding has source -1 and no slot. offsets[experts] is the end of the last expert's padding; sources
// behind it are left as they were.
struct RouteParams {
  ConstMatrix logits = {};      // [rows, >= experts], FP32
  const float* bias = nullptr;  // [experts]
  std::int64_t experts = 0;
  std::int64_t top_k = 0;
  RouterScore score = RouterScore::kSigmoid;
  RouterNormalize normalize = RouterNormalize::kSum;
  float scaling_factor = 1.0f;
  std::int64_t alignment = 1;
  std::int32_t* selected = nullptr;  // out [rows, top_k]: experts
  float* weights = nullptr;          // out [rows, top_k]
  std::int32_t* offsets = nullptr;   // out [experts + 1]
  std::int32_t* slots = nullptr;     // out [rows, top_k]: sorted position
  std::int32_t* sources = nullptr;   // out [sorted_capacity]: row of each sorted position, -1 for padding
  Extent rows = {};
};

// The most sorted positions, padding included, that `rows` rows can take: of every expert that is chosen, the last
// tile holds at least one row. A multiple of `alignment`.
constexpr std::int64_t sorted_capacity(std::int64_t rows, std::int64_t experts, std::int64_t top_k,
                                       std::int64_t alignment) {
  const std::int64_t pairs = rows * top_k;
  const std::int64_t most = pairs + std::min(experts, pairs) * (alignment - 1);
  return most / alignment * alignment;
}

void route(OpContext& context, const RouteParams& params);

// sorted[i] = x[sources[i]] for i < *count, scales included. A source of -1 gives zeros; their scales are
// kE4M3MinScale.
struct GatherRowsParams {
  Operand x = {};                         // [rows, cols]
  const std::int32_t* sources = nullptr;  // [capacity]
  Operand sorted = {};                    // [capacity, cols], the same kind
  Extent sorted_rows = {};                // count: &offsets[experts]
};

void gather_rows(OpContext& context, const GatherRowsParams& params);

// h[r] = round(h[r] + ((sum_j weights[r, j] * expert_out[slots[r, j]], j = 0, 1, ...) + shared[r])), FP32 inside.
struct MoeCombineParams {
  ConstMatrix expert_out = {};          // [sorted rows, width]
  const std::int32_t* slots = nullptr;  // [rows, top_k]
  const float* weights = nullptr;       // [rows, top_k]
  std::int64_t top_k = 0;
  ConstMatrix shared = {};  // [rows, width] or data = null
  Matrix h = {};            // [rows, width]; all of one dtype, FP32 or BF16
  Extent rows = {};
};

void moe_combine(OpContext& context, const MoeCombineParams& params);

}  // namespace onerec
