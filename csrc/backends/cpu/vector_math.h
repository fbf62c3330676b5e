// Elementary functions that vectorise: no branch, no call, no table, and the same bits at every level of vector
// instructions (products and sums are rounded one by one). Call them in loops of functions marked ONEREC_MULTIVERSION.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace onerec::cpu {

#define ONEREC_INLINE inline __attribute__((always_inline))

// e^x within 2 units in the last place for -87.3 <= x <= 88.3. Below, 0: arithmetic on subnormal numbers is slow.
// Above, infinity. NaN gives NaN.
ONEREC_INLINE float exp_of(float x) {
  constexpr float kLargest = 88.3f;
  constexpr float kSmallest = -87.3f;
  constexpr float kLog2E = 1.44269504f;
  // ln 2 in two parts; the first has 9 significant bits, so that its product with n is exact.
  constexpr float kLn2High = 0.693359375f;
  constexpr float kLn2Low = -2.12194440e-4f;
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, left in the low bits
  const float shifted = std::fma(x, kLog2E, kRounder);
  const float n = shifted - kRounder;
  const float r = std::fma(n, -kLn2Low, std::fma(n, -kLn2High, x));  // |r| <= ln(2) / 2
  // Taylor's series: the first term left out is r^8 / 8! < 6e-9.
  float p = 1.0f / 5040.0f;
  p = std::fma(p, r, 1.0f / 720.0f);
  p = std::fma(p, r, 1.0f / 120.0f);
  p = std::fma(p, r, 1.0f / 24.0f);
  p = std::fma(p, r, 1.0f / 6.0f);
  p = std::fma(p, r, 0.5f);
  p = std::fma(p, r * r, r) + 1.0f;
  const std::uint32_t exponent = std::bit_cast<std::uint32_t>(shifted) - std::bit_cast<std::uint32_t>(kRounder) + 127u;
  const float result = p * std::bit_cast<float>(exponent << 23);
  const float bounded = x > kLargest ? std::numeric_limits<float>::infinity() : result;
  return x < kSmallest ? 0.0f : bounded;
}

// g / (1 + e^-g)
ONEREC_INLINE float silu_of(float g) { return g / (1.0f + exp_of(-g)); }

}  // namespace onerec::cpu
