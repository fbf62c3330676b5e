// Self-attention over a handful of keys per row, found through the beams' ancestry.
#pragma once

#include "backends/cuda/kernels/block.cuh"
#include "backends/cuda/kernels/grid_dependency.cuh"

namespace onerec::cuda::kernels {

inline constexpr int kMaxKeys = 8;

// Step s left [., stride[s]] with q, k, v side by side. Row r sees rows ancestry[s][r] of the steps s < keys - 1, and
// itself in the last one.
struct SelfAttentionArguments {
  std::int64_t rows = 0;
  const std::int32_t* count = nullptr;
  std::int32_t keys = 1;
  std::uint32_t heads = 1;
  std::uint32_t group = 1;  // heads that share keys and values
  std::int32_t head_dim = 0;
  std::int64_t key_column = 0;
  std::int64_t value_column = 0;
  float scale = 0.0f;
  const void* qkv[kMaxKeys] = {};
  std::int64_t stride[kMaxKeys] = {};
  const std::int32_t* ancestry[kMaxKeys] = {};
  void* out = nullptr;
  std::int64_t out_stride = 0;
};

template <class T>
__device__ __forceinline__ const T* token_of(const SelfAttentionArguments& p, int s, std::int64_t row) {
  const std::int64_t at = s + 1 < p.keys ? p.ancestry[s][row] : row;
  return static_cast<const T*>(p.qkv[s]) + at * p.stride[s];
}

// Scores become numerators of the softmax. Returns one over their sum.
template <int kMost>
__device__ __forceinline__ float soften(float (&scores)[kMost], int keys) {
  float largest = scores[0];
#pragma unroll
  for (int s = 1; s < kMost; ++s) {
    if (s < keys) largest = fmaxf(largest, scores[s]);
  }
  float total = 0.0f;
#pragma unroll
  for (int s = 0; s < kMost; ++s) {
    if (s >= keys) continue;
    scores[s] = expf(scores[s] - largest);
    total += scores[s];
  }
  return 1.0f / total;
}

// kLanes lanes hold a head, a vector each; at most kMost keys. head_dim is a multiple of a vector of T, all rows and
// heads are aligned to vectors, and rows * heads fits in 32 bits.
template <class T, int kLanes, int kMost>
__global__ void __launch_bounds__(256) self_attention_kernel(const __grid_constant__ SelfAttentionArguments p) {
  wait_for_previous_kernel();
  allow_next_kernel();
  constexpr int kN = kVector<T>;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const std::int64_t per_block = blockDim.x / kLanes;
  const std::int64_t live = (p.count == nullptr ? p.rows : *p.count) * p.heads;
  const bool in_head = lane * kN < p.head_dim;
  const std::int64_t turn = gridDim.x * per_block;
  for (std::int64_t base = blockIdx.x * per_block; base < live; base += turn) {  // the same for the whole block
    const std::int64_t item = base + threadIdx.x / kLanes;
    const bool active = in_head && item < live;
    const std::int64_t row = static_cast<std::uint32_t>(item) / p.heads;
    const std::uint32_t head = static_cast<std::uint32_t>(item) % p.heads;
    const std::int64_t own = static_cast<std::int64_t>(head) * p.head_dim + lane * kN;
    const std::int64_t shared = static_cast<std::int64_t>(head / p.group) * p.head_dim + lane * kN;
    uint4 query = make_uint4(0, 0, 0, 0);
    uint4 key[kMost];
    uint4 value[kMost];
#pragma unroll
    for (int s = 0; s < kMost; ++s) {
      key[s] = make_uint4(0, 0, 0, 0);
      value[s] = make_uint4(0, 0, 0, 0);
      if (!active || s >= p.keys) continue;
      const T* const token = token_of<T>(p, s, row);
      key[s] = load_vector(token + p.key_column + shared);
      value[s] = load_vector(token + p.value_column + shared);
      if (s + 1 == p.keys) query = load_vector(token + own);
    }
    float q[kN];
    unpack<T>(query, q);
    float scores[kMost];
#pragma unroll
    for (int s = 0; s < kMost; ++s) {
      if (s >= p.keys) continue;
      float k[kN];
      unpack<T>(key[s], k);
      float dot = 0.0f;
#pragma unroll
      for (int j = 0; j < kN; ++j) dot += q[j] * k[j];
      scores[s] = p.scale * warp_sum<kLanes>(dot);
    }
    const float inverse = soften(scores, p.keys);
    float sum[kN] = {};
#pragma unroll
    for (int s = 0; s < kMost; ++s) {
      if (s >= p.keys) continue;
      float v[kN];
      unpack<T>(value[s], v);
#pragma unroll
      for (int j = 0; j < kN; ++j) sum[j] += scores[s] * v[j];
    }
#pragma unroll
    for (int j = 0; j < kN; ++j) sum[j] *= inverse;
    if (active) store_vector(static_cast<T*>(p.out) + row * p.out_stride + own, pack<T>(sum));
  }
}

// Any width and alignment: a warp takes a head.
template <class T>
__global__ void __launch_bounds__(256) self_attention_plain_kernel(const __grid_constant__ SelfAttentionArguments p) {
  wait_for_previous_kernel();
  allow_next_kernel();
  const std::int64_t warps = blockDim.x / kWarp;
  const std::int64_t live = (p.count == nullptr ? p.rows : *p.count) * p.heads;
  for (std::int64_t item = blockIdx.x * warps + warp_index(); item < live; item += gridDim.x * warps) {
    const std::int64_t row = item / p.heads;
    const std::int64_t head = item % p.heads;
    const T* const query = token_of<T>(p, p.keys - 1, row) + head * p.head_dim;
    const std::int64_t shared = head / p.group * p.head_dim;
    float scores[kMaxKeys];
#pragma unroll
    for (int s = 0; s < kMaxKeys; ++s) {
      if (s >= p.keys) continue;
      const T* const key = token_of<T>(p, s, row) + p.key_column + shared;
      float dot = 0.0f;
      for (int d = lane_index(); d < p.head_dim; d += kWarp) dot += to_float(query[d]) * to_float(key[d]);
      scores[s] = p.scale * warp_sum(dot);
    }
    const float inverse = soften(scores, p.keys);
    T* const out = static_cast<T*>(p.out) + row * p.out_stride + head * p.head_dim;
    for (int d = lane_index(); d < p.head_dim; d += kWarp) {
      float sum = 0.0f;
#pragma unroll
      for (int s = 0; s < kMaxKeys; ++s) {
        if (s < p.keys) sum += scores[s] * to_float(token_of<T>(p, s, row)[p.value_column + shared + d]);
      }
      out[d] = from_float<T>(sum * inverse);
    }
  }
}

}  // namespace onerec::cuda::kernels
