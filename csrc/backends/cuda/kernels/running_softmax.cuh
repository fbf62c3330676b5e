// Softmax over the accumulators of a warpgroup's product of 64 rows, tile by tile. `Scores` and `Sums` are a thread's
// part, in the order of attention_layout.cuh.
#pragma once

#include <cuda_bf16.h>

#include <cute/tensor.hpp>

#include "backends/cuda/kernels/attention_layout.cuh"

namespace onerec::cuda::kernels {

__device__ __forceinline__ float exp2_approximately(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float max_of_four_lanes(float value) {
  value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
  return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 2));
}

__device__ __forceinline__ float sum_of_four_lanes(float value) {
  value += __shfl_xor_sync(0xffffffffu, value, 1);
  return value + __shfl_xor_sync(0xffffffffu, value, 2);
}

// A row's numerators are 2^(score - base), its base being a score that lies at most this far, in powers of two, below
// the largest so far. Sums are rescaled only where a row goes beyond that.
inline constexpr float kBaseSlack = 8.0f;

// The running softmax of a thread's two rows. The four lanes of a row agree on the base; each has its own part of the
// sum. What a row gets depends on its own scores alone.
struct RunningSoftmax {
  float base[2] = {-INFINITY, -INFINITY};  // times scale_log2
  float sum[2] = {0.0f, 0.0f};
  float shrink[2] = {0.0f, 0.0f};  // what sums over the tiles before the last one are to be multiplied by
  bool grew = false;               // the same for all threads of a warp: whether any row's is not 1

  // Turns the scores of a tile into numerators.
  template <class Scores>
  __device__ __forceinline__ void advance(Scores& scores, float scale_log2) {
    constexpr int kElements = decltype(cute::size(scores))::value;
    float highest[4];  // two of each row: chains half as long
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      float& most = highest[e % 4];
      most = e < 4 ? scores(e) : fmaxf(most, scores(e));
    }
    bool grows[2];
    float subtracted[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float largest = max_of_four_lanes(fmaxf(highest[2 * half], highest[2 * half + 1])) * scale_log2;
      const float before = base[half];
      grows[half] = largest > before + kBaseSlack;
      base[half] = grows[half] ? largest : before;
      subtracted[half] = base[half] == -INFINITY ? 0.0f : base[half];  // -inf - -inf is not 0
      shrink[half] = exp2_approximately(before - subtracted[half]);
      sum[half] *= shrink[half];
    }
    grew = __any_sync(0xffffffffu, grows[0] || grows[1]);
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      scores(e) = exp2_approximately(fmaf(scores(e), scale_log2, -subtracted[row_half(e)]));
      sum[row_half(e)] += scores(e);
    }
  }
};

// What the sums of a row over two parts of its context are to be multiplied by, before they are added up. The bases are
// those of the parts' numerators; a part without tokens has -infinity, and sums of 0.
struct PartWeights {
  float own;
  float other;

  __device__ __forceinline__ PartWeights(float own_base, float other_base) {
    const float largest = fmaxf(own_base, other_base);
    const float subtracted = largest == -INFINITY ? 0.0f : largest;
    own = exp2_approximately(own_base - subtracted);
    other = exp2_approximately(other_base - subtracted);
  }
  // Either part may be the own one: the bits are the same.
  __device__ __forceinline__ float add(float own_sum, float other_sum) const {
    return __fadd_rn(__fmul_rn(own, own_sum), __fmul_rn(other, other_sum));
  }
};

template <class Scores>
__device__ __forceinline__ void mask_columns(Scores& scores, int columns, int thread) {
  constexpr int kElements = decltype(cute::size(scores))::value;
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    if (accumulator_column(thread, e) >= columns) scores(e) = -INFINITY;
  }
}

__device__ __forceinline__ std::uint32_t pack_pair(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}

// The accumulators of a product of 64 rows are, pair by pair, the registers of a left-hand side.
template <class Scores, class Numerators>
__device__ __forceinline__ void round_numerators(const Scores& scores, Numerators& numerators) {
  auto pairs = cute::recast<std::uint32_t>(numerators);
  constexpr int kPairs = decltype(cute::size(pairs))::value;
  static_assert(kPairs * 2 == decltype(cute::size(scores))::value, "as many columns as scores");
#pragma unroll
  for (int i = 0; i < kPairs; ++i) pairs(i) = pack_pair(scores(2 * i), scores(2 * i + 1));
}

template <class Sums>
__device__ __forceinline__ void scale_rows(Sums& sums, const float (&factor)[2]) {
  constexpr int kElements = decltype(cute::size(sums))::value;
#pragma unroll
  for (int e = 0; e < kElements; ++e) sums(e) *= factor[row_half(e)];
}

}  // namespace onerec::cuda::kernels
