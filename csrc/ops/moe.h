// Mixture of experts: choose experts per row, sort the rows by expert, and add the experts' outputs up.
#pragma once

#include "ops/context.h"

namespace onerec {

enum class RouterScore : std::uint8_t { kSigmoid, kSoftmax };

// Selects the top_k experts with the largest score + bias, ties to the smaller index, in that order; weights are the
// bare scores, divided by (their sum + 1e-20) if `normalize` is kSum, times `scaling_factor` (DeepSeek-V3, arXiv
// 2412.19437, section 2.1.2). Then counts per expert and the place of every (row, choice) in the expert-sorted order;
// within an expert by (row, choice).
enum class RouterNormalize : std::uint8_t { kNone, kSum };

struct RouteParams {
  ConstMatrix logits = {};      // [rows, >= experts], FP32
  const float* bias = nullptr;  // [experts]
  std::int64_t experts = 0;
  std::int64_t top_k = 0;
  RouterScore score = RouterScore::kSigmoid;
  RouterNormalize normalize = RouterNormalize::kSum;
  float scaling_factor = 1.0f;
  std::int32_t* selected = nullptr;  // out [rows, top_k]: experts
  float* weights = nullptr;          // out [rows, top_k]
  std::int32_t* offsets = nullptr;   // out [experts + 1]
  std::int32_t* slots = nullptr;     // out [rows, top_k]: sorted position
  std::int32_t* sources = nullptr;   // out [rows * top_k]: row of each sorted position
  Extent rows = {};
};

void route(OpContext& context, const RouteParams& params);

// sorted[i] = x[sources[i]] for i < *count, scales included.
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
