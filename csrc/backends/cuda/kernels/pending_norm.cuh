// Codes per row of norms (docs/numerics.md), and norms that are left to the product that reads their codes (PendingNorm
// of ops/operand.h).
#pragma once

#include "backends/cuda/kernels/numeric.cuh"

namespace onerec::cuda::kernels {

// --- the scale of a row's codes ---

// root_power() of core/float8.h: a power of two next to the root of a mean square.
__device__ __forceinline__ float root_power(float mean_square) {
  constexpr int kBound = 48;
  const int exponent = static_cast<int>(bits_as<std::uint32_t>(mean_square) >> 23 & 0xffu) - 127;
  const int half = (exponent + 1) >> 1;
  const int bounded = half < -kBound ? -kBound : half > kBound ? kBound : half;
  return bits_as<float>(static_cast<std::uint32_t>(bounded + 127) << 23);
}

// 1 / power, of a power of two whose inverse is one of normal size.
__device__ __forceinline__ float inverse_power(float power) {
  return bits_as<float>(0x7f000000u - bits_as<std::uint32_t>(power));
}

// `factor`; NaN where the mean square is not finite: codes of such a row say nothing.
__device__ __forceinline__ float of_finite_row(float mean_square, float factor) {
  constexpr float kLargest = 3.40282347e+38f;
  return mean_square <= kLargest ? factor : NAN;
}

// The norm's factor of a row.
__device__ __forceinline__ float finite_inverse_root(float mean_square, float eps) {
  return of_finite_row(mean_square, reciprocal_root(mean_square + eps));
}

// --- pending norms ---

// Sums of squares are counted in parts of a power of two: in whole numbers they are the same in any order.
inline constexpr float kSquareParts = 4294967296.0f;  // 2^32

// A sum of squares in parts of root^2.
__device__ __forceinline__ unsigned long long square_parts(float sum, float inverse_root) {
  return __float2ull_rn(sum * inverse_root * inverse_root * kSquareParts);
}

// The rows of an operand.
struct PendingRows {
  const float* scales = nullptr;
  const unsigned long long* squares = nullptr;  // null: nothing is pending
  float unit = 0.0f;
  float inverse_width = 0.0f;  // of the norm
  float eps = 0.0f;
};

__device__ __forceinline__ float mean_square(const PendingRows& rows, float scale, unsigned long long squares) {
  const float root = scale * rows.unit;
  return static_cast<float>(squares) * (rows.inverse_width / kSquareParts) * (root * root);
}

// What a row of the product is to be multiplied by.
__device__ __forceinline__ float pending_factor(const PendingRows& rows, float scale, unsigned long long squares) {
  return scale * finite_inverse_root(mean_square(rows, scale, squares), rows.eps);
}

// Where a norm goes that is left pending.
struct PendingTarget {
  unsigned long long* squares = nullptr;  // null: it is not
  unsigned long long* next_squares = nullptr;
};

}  // namespace onerec::cuda::kernels
