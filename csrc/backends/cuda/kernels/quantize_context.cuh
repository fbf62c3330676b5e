// Codes of a context's keys, and of its values, transposed: ops/context_codes.h.
#pragma once

#include "backends/cuda/kernels/grid_dependency.cuh"
#include "backends/cuda/kernels/numeric.cuh"
#include "ops/context_tokens.h"

namespace onerec::cuda::kernels {

template <class T>
struct QuantizeContextArguments {
  const T* k = nullptr;
  std::int64_t k_stride = 0;
  const T* v = nullptr;  // may be k
  std::int64_t v_stride = 0;
  const std::int32_t* context_offsets = nullptr;  // [requests + 1]
  int requests = 0;
  std::uint8_t* keys = nullptr;
  std::int64_t keys_stride = 0;
  std::uint8_t* values = nullptr;  // aligned to 16 bytes, as is every row
  std::int64_t values_stride = 0;
  std::int64_t width = 0;
  float key_inverse = 1.0f;
  float value_inverse = 1.0f;
  int fours = 0;  // 1: the width and all rows' starts are multiples of four elements
};

inline constexpr int kContextThreads = 256;
inline constexpr int kContextTokens = 128;  // of a block, whole groups
inline constexpr int kContextColumns = 64;
// Bytes from one column of a block's values to the next: a word more than they need, for other banks.
inline constexpr int kContextPitch = kContextTokens + 4;

// Four columns, of which `live` are there; the others are 0.
template <class T>
__device__ __forceinline__ void load_columns(const T* from, std::int64_t live, bool fours, float (&values)[4]) {
  if (fours) {
    if constexpr (std::is_same_v<T, bf16>) {
      unpack_four(*reinterpret_cast<const uint2*>(from), values);
    } else {
      load_floats(from, values);
    }
    return;
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) values[j] = j < live ? to_float(from[j]) : 0.0f;
}

__device__ __forceinline__ void store_codes_of(std::uint8_t* to, std::int64_t live, bool fours, std::uint32_t codes) {
  if (fours) {
    *reinterpret_cast<std::uint32_t*>(to) = codes;
    return;
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (j < live) to[j] = static_cast<std::uint8_t>(codes >> (8 * j));
  }
}

// The blocks of request `b` begin here, whose first token is `first` among those of all requests; it has more than its
// tiles at most.
__host__ __device__ constexpr std::int64_t context_block(std::int64_t first, std::int64_t b) {
  return first / kContextTokens + b;
}

// Whose block `index` is.
template <class T>
__device__ __forceinline__ int request_of_block(const QuantizeContextArguments<T>& args, std::int64_t index) {
  int behind = 1;  // the first request whose blocks begin behind it, or the number of requests
  int end = args.requests;
  while (behind < end) {
    const int middle = (behind + end) / 2;
    if (context_block(args.context_offsets[middle], middle) <= index) {
      behind = middle + 1;
    } else {
      end = middle;
    }
  }
  return behind - 1;
}

// Grid: context_block() of all tokens and requests, tiles of kContextColumns columns.
template <class T>
__global__ void __launch_bounds__(kContextThreads) quantize_context_kernel(const QuantizeContextArguments<T> args) {
  static_assert(kContextTokens % kTokenGroup == 0, "a group is in one block");
  constexpr int kRowThreads = kContextColumns / 4;
  __shared__ __align__(16) std::uint8_t transposed[kContextColumns * kContextPitch];
  overlap_with_neighbours();
  const int request = request_of_block(args, blockIdx.x);
  const std::int64_t first = args.context_offsets[request];
  const std::int64_t tokens = args.context_offsets[request + 1] - first;
  const std::int64_t base = (blockIdx.x - context_block(first, request)) * kContextTokens;
  if (base >= tokens) return;  // all threads
  const std::int64_t first_column = static_cast<std::int64_t>(blockIdx.y) * kContextColumns;

  const int own = static_cast<int>(threadIdx.x) % kRowThreads * 4;
  const std::int64_t column = first_column + own;
  const std::int64_t live = args.width - column;
  const bool shared = args.v == args.k && args.v_stride == args.k_stride;
#pragma unroll 4
  for (int t = static_cast<int>(threadIdx.x) / kRowThreads; t < kContextTokens; t += kContextThreads / kRowThreads) {
    const std::int64_t n = base + t;
    std::uint32_t value_codes = 0;
    if (n < tokens && live > 0) {
      float values[4];
      load_columns(args.k + (first + n) * args.k_stride + column, live, args.fours != 0, values);
      const std::uint32_t codes = to_e4m3x4(values[0] * args.key_inverse, values[1] * args.key_inverse,
                                            values[2] * args.key_inverse, values[3] * args.key_inverse);
      store_codes_of(args.keys + (first + n) * args.keys_stride + column, live, args.fours != 0, codes);
      if (!shared) load_columns(args.v + (first + n) * args.v_stride + column, live, args.fours != 0, values);
      value_codes = to_e4m3x4(values[0] * args.value_inverse, values[1] * args.value_inverse,
                              values[2] * args.value_inverse, values[3] * args.value_inverse);
    }
    const int place = static_cast<int>(value_column(0, t));
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      transposed[(own + j) * kContextPitch + place] = static_cast<std::uint8_t>(value_codes >> (8 * j));
    }
  }
  __syncthreads();

  constexpr int kColumnVectors = kContextTokens / 16;
  const std::int64_t begin = value_begin(first, request) + base;
  const std::int64_t end = whole_token_groups(tokens) - base;
  for (int i = static_cast<int>(threadIdx.x); i < kContextColumns * kColumnVectors; i += kContextThreads) {
    const int row = i / kColumnVectors;
    const int place = i % kColumnVectors * 16;
    if (first_column + row >= args.width || place >= end) continue;
    const auto* const words = reinterpret_cast<const std::uint32_t*>(transposed + row * kContextPitch + place);
    store_vector(args.values + (first_column + row) * args.values_stride + begin + place,
                 make_uint4(words[0], words[1], words[2], words[3]));
  }
}

}  // namespace onerec::cuda::kernels
