// Cross-attention on tensor cores. Free of CUTLASS.
#pragma once

#include "ops/cross_attention.h"

namespace onerec::cuda {

// How the context of a request is cut into parts that run side by side, and their results in the workspace.
struct FlashPlan {
  int splits = 1;
  float* sums = nullptr;   // [splits, rows_capacity, heads, head_dim]
  float* norms = nullptr;  // [splits, rows_capacity, heads, 2]
};

// BF16, head_dim 64 or 128, scale > 0, at least one token of capacity; every pointer and row of q, k, v and out starts
// at a multiple of 16 bytes. With one split the arrays of the plan are not used.
void flash_cross_attention(Stream& stream, const CrossAttentionParams& params, const FlashPlan& plan);

}  // namespace onerec::cuda
