// Causal self-attention over the tokens generated so far, gathered through the beams' ancestry: nothing is moved.
#pragma once

#include <array>

#include "ops/context.h"
#include "ops/operand.h"

namespace onerec {

inline constexpr int kMaxLevels = 8;

// Step s of this layer left its projections in qkv[s]: [rows of step s, (heads + 2 * kv_heads) * head_dim] with q, k, v
// side by side. Row r of the current step t attends to rows ancestry[s][r] of the steps s < t, and to itself in qkv[t].
// out[r, h] = sum_s softmax_s(scale * q . k_s) v_s, everything FP32 until it is rounded to qkv's dtype. Exactly one of
// `out` and `quantized` is given; the codes are those of the rounded values.
struct SelfAttentionParams {
  int step = 0;                                               // t
  std::array<ConstMatrix, kMaxLevels> qkv = {};               // [0, t], FP32 or BF16
  std::array<const std::int32_t*, kMaxLevels> ancestry = {};  // [0, t): [rows] each, device
  Matrix out = {};                                            // [rows, heads * head_dim] of qkv's dtype
  Operand quantized = {};                                     // the same shape, kPerRow
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  float scale = 0.0f;
  Extent rows = {};
  bool settled = false;  // all but qkv[t] was written ahead of an embed_step(): it may be read early
};

void self_attention(OpContext& context, const SelfAttentionParams& params);

}  // namespace onerec
