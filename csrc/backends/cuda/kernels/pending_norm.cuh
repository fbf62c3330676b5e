// Norms that are left to the product that reads their codes (PendingNorm of ops/operand.h).
#pragma once

#include "backends/cuda/kernels/numeric.cuh"

namespace onerec::cuda::kernels {

// Sums of squares are counted in units of a power of two: in whole numbers they are the same in any order.
inline constexpr float kSquareParts = 4294967296.0f;  // 2^32

// The rows of a pending norm; see PendingNorm.
struct PendingRows {
  const float* scales = nullptr;
  const unsigned long long* squares = nullptr;  // null: nothing is pending, and the scales are the rows'
  float unit = 0.0f;
  float inverse_width = 0.0f;  // 1 / width
  float eps = 0.0f;
};

__device__ __forceinline__ float mean_square(const PendingRows& rows, float scale, unsigned long long squares) {
  const float unit = scale * rows.unit;
  return static_cast<float>(squares) * (rows.inverse_width / kSquareParts) * (unit * unit);
}

// What a row of the product is to be multiplied by.
__device__ __forceinline__ float pending_factor(const PendingRows& rows, float scale, unsigned long long squares) {
  return scale * reciprocal_root(mean_square(rows, scale, squares) + rows.eps);
}

// Where a norm that is left pending goes.
struct PendingTarget {
  unsigned long long* squares = nullptr;  // null: the norm is not left pending
  unsigned long long* next_squares = nullptr;
  float unit = 0.0f;
};

// A power of two next to the root of a mean square: the square of their quotient is in [0.5, 2). Within bounds that
// leave room for its square.
__device__ __forceinline__ float root_power(float mean_square) {
  const int exponent = static_cast<int>(bits_as<std::uint32_t>(mean_square) >> 23) - 127;
  const int half = (exponent + 1) >> 1;
  return bits_as<float>(static_cast<std::uint32_t>((half < -48 ? -48 : half > 48 ? 48 : half) + 127) << 23);
}

// 1 / power, of a power of two.
__device__ __forceinline__ float inverse_power(float power) {
  return bits_as<float>(0x7f000000u - bits_as<std::uint32_t>(power));
}

// A sum of squares in parts of root^2.
__device__ __forceinline__ unsigned long long square_parts(float sum, float inverse_root) {
  return __float2ull_rn(sum * inverse_root * inverse_root * kSquareParts);
}

}  // namespace onerec::cuda::kernels
