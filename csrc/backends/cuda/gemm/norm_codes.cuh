// Codes of the norm of a product's rows, made with the product's results: of the norm's values there are never more
// than a tile's, so that scales come from the norm before it, and the sum of squares is left to whoever reads the codes
// (PendingNorm of ops/operand.h).
#pragma once

#include "backends/cuda/gemm/direct_ring.cuh"
#include "backends/cuda/gemm/result_vector.cuh"

namespace onerec::cuda::kernels {

// The inverse of the power of two in whose units a row is coded: that of the row before the product was added to it.
__device__ __forceinline__ float inverse_root_before(const DirectNorm& norm, float scale, unsigned long long squares) {
  return inverse_power(root_power(mean_square(norm.previous, scale, squares)));
}

// What a thread has coded of a row.
struct CodedRow {
  float squares = 0.0f;  // of the values
  float largest = 0.0f;  // magnitude before it was rounded to a code

  // Codes of gamma * y in units of 1 / inverse.
  __device__ __forceinline__ std::uint32_t code(const ResultVector<4>& y, const float (&gamma)[4], float inverse) {
    float values[4] = {bits_as<float>(y.words[0] << 16), bits_as<float>(y.words[0] & 0xffff0000u),
                       bits_as<float>(y.words[1] << 16), bits_as<float>(y.words[1] & 0xffff0000u)};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      squares = fmaf(values[i], values[i], squares);
      values[i] = values[i] * gamma[i] * inverse;
      largest = fmaxf(largest, fabsf(values[i]));
    }
    return numbers_to_e4m3x4(values[0], values[1], values[2], values[3]);
  }
};

// Of every lane of a warp, when a tile's part of a row has been coded: adds up the squares of the four lanes that share
// the row. The tile of the first columns also says what the row's scale is.
__device__ __forceinline__ void finish_codes(const DirectNorm& norm, std::int64_t row, bool live, bool first_tile,
                                             float inverse_root, const CodedRow& coded) {
  constexpr float kLargestCode = 448.0f;
  constexpr float kMostSquares = 67108864.0f;  // of a tile, in roots^2: the parts of a row's sum are fewer than 2^64
  float squares = coded.squares;
  squares += __shfl_xor_sync(0xffffffffu, squares, 1);
  squares += __shfl_xor_sync(0xffffffffu, squares, 2);
  if (!live) return;
  const float in_roots = squares * inverse_root * inverse_root;
  if (coded.largest > kLargestCode || in_roots > kMostSquares) atomicOr(norm.overflowed, 1);
  if (threadIdx.x % 4 != 0) return;
  atomicAdd(norm.target.squares + row, __float2ull_rn(in_roots * kSquareParts));
  if (!first_tile) return;
  norm.scales[row] = inverse_power(inverse_root * norm.unit);
  norm.target.next_squares[row] = 0;
}

}  // namespace onerec::cuda::kernels
