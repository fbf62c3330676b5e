// Adds up what the splits of flash_attention left.
#pragma once

#include "backends/cuda/kernels/block.cuh"
#include "backends/cuda/kernels/grid_dependency.cuh"

namespace onerec::cuda::kernels {

inline constexpr int kCombineWarps = 8;
inline constexpr int kCombineThreads = kCombineWarps * kWarp;

struct AttentionSplits {
  const float* sums = nullptr;    // [splits, rows, heads, head_dim], aligned to 16 bytes
  const float2* norms = nullptr;  // [splits, rows, heads]: see FlashAttentionArguments
  int splits = 1;
  std::int64_t rows_capacity = 0;
  int heads = 0;
  const std::int32_t* rows_end = nullptr;  // the number of live rows
  bf16* out = nullptr;                     // aligned to 16 bytes, as is every row
  std::int64_t out_stride = 0;
};

// One warp per row and head. Splits without tokens count for nothing; without any tokens the output is 0.
template <int kHeadDim>
__global__ void __launch_bounds__(kCombineThreads) combine_attention_splits(const AttentionSplits args) {
  wait_for_previous_kernel();
  allow_next_kernel();
  constexpr int kColumns = kHeadDim / kWarp;  // of a lane
  static_assert(kColumns == 2 || kColumns == 4, "stored as whole words");
  const std::int64_t query = static_cast<std::int64_t>(blockIdx.x) * kCombineWarps + warp_index();
  if (query >= static_cast<std::int64_t>(*args.rows_end) * args.heads) return;
  const std::int64_t queries = args.rows_capacity * args.heads;
  const int column = lane_index() * kColumns;

  float largest = -INFINITY;
  for (int s = 0; s < args.splits; ++s) largest = fmaxf(largest, args.norms[s * queries + query].x);

  float total = 0.0f;
  float sums[kColumns] = {};
  bool any = false;
  for (int s = 0; s < args.splits; ++s) {
    const float2 norm = args.norms[s * queries + query];
    if (norm.y < 0.0f) continue;
    any = true;
    const float weight = exp2f(norm.x - largest);
    total += weight * norm.y;
    const float* from = args.sums + (s * queries + query) * kHeadDim + column;
#pragma unroll
    for (int i = 0; i < kColumns; i += 2) {
      const float2 pair = *reinterpret_cast<const float2*>(from + i);
      sums[i] += weight * pair.x;
      sums[i + 1] += weight * pair.y;
    }
  }

  const std::int64_t row = query / args.heads;
  bf16* to = args.out + row * args.out_stride + query % args.heads * kHeadDim + column;
#pragma unroll
  for (int i = 0; i < kColumns; i += 2) {
    const float low = any ? sums[i] / total : 0.0f;
    const float high = any ? sums[i + 1] / total : 0.0f;
    *reinterpret_cast<__nv_bfloat162*>(to + i) = __floats2bfloat162_rn(low, high);
  }
}

}  // namespace onerec::cuda::kernels
