// Cross-attention without tensor cores: any type, stride and head_dim up to 256, with the maximum known before any
// numerator is rounded. Rows do not depend on what is beside them or on capacities.
#pragma once

#include "backends/cuda/kernels/attention_layout.cuh"
#include "backends/cuda/kernels/attention_tensors.cuh"
#include "backends/cuda/kernels/block.cuh"
#include "backends/cuda/kernels/grid_dependency.cuh"

namespace onerec::cuda::kernels {

inline constexpr int kPlainAttentionWarps = 8;
inline constexpr int kPlainAttentionThreads = kPlainAttentionWarps * kWarp;
inline constexpr int kWarpQueries = 4;
inline constexpr int kPlainAttentionQueries = kPlainAttentionWarps * kWarpQueries;  // of a block

template <class T>
struct PlainAttentionArguments : AttentionTensors<T> {
  int group_heads = 0;  // heads that share keys and values
  int head_dim = 0;     // <= 32 * kLaneColumns
  float scale = 0.0f;
};

// A lane sums kLaneColumns columns: lane, lane + 32, ... Rows in shared memory are one word longer, so that the lanes'
// rows start in different banks.
template <int kLaneColumns>
struct PlainAttentionTile {
  static constexpr int kStride = kLaneColumns * kWarp + 1;
  static constexpr int kSharedBytes = (kWarp + kPlainAttentionQueries) * kStride * static_cast<int>(sizeof(float));
};

// 32 tokens of one group as FP32; 0 behind the last token.
template <int kStride, class T>
__device__ __forceinline__ void load_tokens(const T* from, std::int64_t stride, int tokens, int head_dim, float* tile) {
  for (int token = warp_index(); token < kWarp; token += kPlainAttentionWarps) {
    for (int column = lane_index(); column < head_dim; column += kWarp) {
      tile[token * kStride + column] = token < tokens ? to_float(from[token * stride + column]) : 0.0f;
    }
  }
}

// scores[j] = scale * (query j of this warp) . (this lane's token); -inf behind the last token.
template <int kStride>
__device__ __forceinline__ void score_tokens(const float* queries, const float* tile, int tokens, int head_dim,
                                             float scale, float (&scores)[kWarpQueries]) {
#pragma unroll
  for (int j = 0; j < kWarpQueries; ++j) scores[j] = 0.0f;
  const float* key = tile + lane_index() * kStride;
  for (int column = 0; column < head_dim; ++column) {
    const float value = key[column];
#pragma unroll
    for (int j = 0; j < kWarpQueries; ++j) scores[j] = fmaf(queries[j * kStride + column], value, scores[j]);
  }
#pragma unroll
  for (int j = 0; j < kWarpQueries; ++j) scores[j] = lane_index() < tokens ? scores[j] * scale : -INFINITY;
}

// Grid: tiles of kPlainAttentionQueries queries of a request and group, groups, requests.
template <class T, int kLaneColumns>
__global__ void __launch_bounds__(kPlainAttentionThreads) plain_cross_attention(const PlainAttentionArguments<T> args) {
  wait_for_previous_kernel();
  allow_next_kernel();
  using Tile = PlainAttentionTile<kLaneColumns>;
  constexpr int kStride = Tile::kStride;
  const int request = static_cast<int>(blockIdx.z);
  const int group = static_cast<int>(blockIdx.y);
  const std::int64_t first_row = args.row_offsets[request];
  const std::int64_t rows = args.row_offsets[request + 1] - first_row;
  const int first_query = static_cast<int>(blockIdx.x) * kPlainAttentionQueries;
  const int queries = static_cast<int>(rows * args.group_heads) - first_query;
  if (queries <= 0) return;  // the whole block
  const std::int64_t first_token = args.context_offsets[request];
  const int tokens = static_cast<int>(args.context_offsets[request + 1] - first_token);
  const std::int64_t first_column = static_cast<std::int64_t>(group) * args.head_dim;
  const T* keys = args.k + first_token * args.k_stride + first_column;
  const T* values = args.v + first_token * args.v_stride + first_column;
  const bool shared = args.k == args.v && args.k_stride == args.v_stride;

  float* tile = dynamic_shared<float>();
  float* block_queries = tile + kWarp * kStride;
  for (int i = warp_index(); i < kPlainAttentionQueries; i += kPlainAttentionWarps) {
    const AttentionQuery query = query_at(first_row, group, args.group_heads, first_query + i);
    const T* from = args.q + query.row * args.q_stride + static_cast<std::int64_t>(query.head) * args.head_dim;
    for (int column = lane_index(); column < args.head_dim; column += kWarp) {
      block_queries[i * kStride + column] = i < queries ? to_float(from[column]) : 0.0f;
    }
  }
  const float* warp_queries = block_queries + warp_index() * kWarpQueries * kStride;

  float scores[kWarpQueries];
  float largest[kWarpQueries];
#pragma unroll
  for (int j = 0; j < kWarpQueries; ++j) largest[j] = -INFINITY;
  for (int begin = 0; begin < tokens; begin += kWarp) {
    __syncthreads();
    load_tokens<kStride>(keys + begin * args.k_stride, args.k_stride, tokens - begin, args.head_dim, tile);
    __syncthreads();
    score_tokens<kStride>(warp_queries, tile, tokens - begin, args.head_dim, args.scale, scores);
#pragma unroll
    for (int j = 0; j < kWarpQueries; ++j) largest[j] = fmaxf(largest[j], scores[j]);
  }
#pragma unroll
  for (int j = 0; j < kWarpQueries; ++j) {
    // A NaN score shows in its numerator.
    for (int step = kWarp / 2; step > 0; step /= 2) {
      largest[j] = fmaxf(largest[j], __shfl_xor_sync(kAllLanes, largest[j], step));
    }
  }

  float totals[kWarpQueries] = {};
  float sums[kWarpQueries][kLaneColumns] = {};
  for (int begin = 0; begin < tokens; begin += kWarp) {
    const int here = min(tokens - begin, kWarp);
    __syncthreads();
    load_tokens<kStride>(keys + begin * args.k_stride, args.k_stride, here, args.head_dim, tile);
    __syncthreads();
    score_tokens<kStride>(warp_queries, tile, here, args.head_dim, args.scale, scores);
    if (!shared) {
      __syncthreads();
      load_tokens<kStride>(values + begin * args.v_stride, args.v_stride, here, args.head_dim, tile);
      __syncthreads();
    }
#pragma unroll
    for (int j = 0; j < kWarpQueries; ++j) {
      const float numerator = lane_index() < here ? expf(scores[j] - largest[j]) : 0.0f;
      totals[j] += numerator;
      scores[j] = to_float(from_float<T>(numerator));
    }
    for (int token = 0; token < here; ++token) {
      float weights[kWarpQueries];
#pragma unroll
      for (int j = 0; j < kWarpQueries; ++j) weights[j] = __shfl_sync(kAllLanes, scores[j], token);
#pragma unroll
      for (int c = 0; c < kLaneColumns; ++c) {
        const int column = lane_index() + c * kWarp;
        const float value = column < args.head_dim ? tile[token * kStride + column] : 0.0f;
#pragma unroll
        for (int j = 0; j < kWarpQueries; ++j) sums[j][c] = fmaf(weights[j], value, sums[j][c]);
      }
    }
  }

#pragma unroll
  for (int j = 0; j < kWarpQueries; ++j) {
    const float total = warp_sum(totals[j]);
    const int index = warp_index() * kWarpQueries + j;
    if (index >= queries) continue;
    const AttentionQuery query = query_at(first_row, group, args.group_heads, first_query + index);
    T* to = args.out + query.row * args.out_stride + static_cast<std::int64_t>(query.head) * args.head_dim;
#pragma unroll
    for (int c = 0; c < kLaneColumns; ++c) {
      const int column = lane_index() + c * kWarp;
      if (column < args.head_dim) to[column] = from_float<T>(tokens == 0 ? 0.0f : sums[j][c] / total);
    }
  }
}

}  // namespace onerec::cuda::kernels
