// Adds up what the splits of flash_attention left, and makes codes of the result where they are wanted.
#pragma once

#include "backends/cuda/kernels/grid_dependency.cuh"
#include "backends/cuda/kernels/row_quantize.cuh"

namespace onerec::cuda::kernels {

inline constexpr int kMostCombineThreads = 1024;

struct AttentionSplits {
  const float* sums = nullptr;    // [splits, rows, heads, head_dim], aligned to 16 bytes
  const float2* norms = nullptr;  // [splits, rows, heads]: see FlashAttentionArguments
  int splits = 1;
  std::int64_t rows_capacity = 0;
  int heads = 0;
  const std::int32_t* rows_end = nullptr;  // the number of live rows
  bf16* out = nullptr;                     // aligned to 16 bytes, as is every row; not written where codes are
  std::int64_t out_stride = 0;
  CodeRows quantized = {};    // kNone or kPerRow, then rows of codes are aligned to 8 bytes
  float static_scale = 0.0f;  // of all rows of codes; 0: each row's largest value decides
};

// The splits' results of eight columns of a row and head. Splits without tokens count for nothing; without any tokens
// the result is 0.
template <int kHeadDim>
__device__ __forceinline__ void add_splits(const AttentionSplits& args, std::int64_t query, int column,
                                           float (&values)[8]) {
  constexpr int kAhead = 4;  // splits whose sums are asked for together
  const std::int64_t queries = args.rows_capacity * args.heads;
  float4 held[kAhead][2];
  const auto load = [&](int first) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i >= args.splits) continue;
      const float* const from = args.sums + ((first + i) * queries + query) * kHeadDim + column;
      held[i][0] = *reinterpret_cast<const float4*>(from);
      held[i][1] = *reinterpret_cast<const float4*>(from + 4);
    }
  };
  load(0);
  float largest = -INFINITY;
#pragma unroll 4
  for (int s = 0; s < args.splits; ++s) largest = fmaxf(largest, args.norms[s * queries + query].x);

  float total = 0.0f;
  bool any = false;
#pragma unroll
  for (int i = 0; i < 8; ++i) values[i] = 0.0f;
  for (int first = 0; first < args.splits; first += kAhead) {
    if (first > 0) load(first);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i >= args.splits) continue;
      const float2 norm = args.norms[(first + i) * queries + query];
      if (norm.y < 0.0f) continue;
      any = true;
      const float weight = exp2f(norm.x - largest);
      total += weight * norm.y;
      const float sums[8] = {held[i][0].x, held[i][0].y, held[i][0].z, held[i][0].w,
                             held[i][1].x, held[i][1].y, held[i][1].z, held[i][1].w};
#pragma unroll
      for (int c = 0; c < 8; ++c) values[c] += weight * sums[c];
    }
  }
#pragma unroll
  for (int c = 0; c < 8; ++c) values[c] = any ? values[c] / total : 0.0f;
}

// A block per row and, where its threads are fewer than the row's vectors of eight columns, per part of the row
// (blockIdx.y); with codes there is one part.
template <int kHeadDim>
__global__ void __launch_bounds__(kMostCombineThreads) combine_attention_splits(const AttentionSplits args) {
  wait_for_previous_kernel();
  allow_next_kernel();
  constexpr int kHeadVectors = kHeadDim / 8;
  const std::int64_t row = blockIdx.x;
  if (row >= *args.rows_end) return;
  const int vector = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
  const bool live = vector < args.heads * kHeadVectors;
  float values[8] = {};
  if (live) {
    add_splits<kHeadDim>(args, row * args.heads + vector / kHeadVectors, vector % kHeadVectors * 8, values);
  }
  const uint4 rounded = pack<bf16>(values);
  if (args.quantized.kind == Codes::kNone) {
    if (live) store_vector(args.out + row * args.out_stride + vector * 8, rounded);
    return;
  }
  unpack<bf16>(rounded, values);
  const float scale =
      args.static_scale > 0.0f ? args.static_scale : e4m3_scale(block_max_magnitude(magnitude_of(values)));
  if (threadIdx.x == 0) args.quantized.scales[row] = scale;
  if (live) store_codes(args.quantized.codes + row * args.quantized.stride + vector * 8, values, e4m3_inverse(scale));
}

}  // namespace onerec::cuda::kernels
