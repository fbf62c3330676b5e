// Elementary functions that vectorise: no branch, no call, no table, and the same bits at every level of vector
// instructions (products and sums are rounded one by one). Call them in loops of functions marked ONEREC_MULTIVERSION.
#pragma once

#include <bit>
#include <cstdint>

namespace onerec::cpu {

#define ONEREC_INLINE inline __attribute__((always_inline))

// e^x within 2 units in the last place. Results below the smallest normal number become 0 (arithmetic on subnormal
// numbers is slow); overflow gives infinity, NaN gives NaN.
ONEREC_INLINE float exp_of(float x) {
  constexpr float kLog2E = 1.44269504f;
  // ln 2 in two parts; the first has 9 significant bits, so that its product with n is exact.
  constexpr float kLn2High = 0.693359375f;
  constexpr float kLn2Low = -2.12194440e-4f;
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, left in the low bits
  constexpr float kLargest = 89.0f;        // e^89 overflows
  constexpr float kSmallest = -87.3365f;   // just above the logarithm of the smallest normal number
  const float clamped = x > kLargest ? kLargest : (x < kSmallest ? kSmallest : x);
  const float shifted = clamped * kLog2E + kRounder;
  const float n = shifted - kRounder;
  const float r = (clamped - n * kLn2High) - n * kLn2Low;  // |r| <= ln(2) / 2
  // Taylor's series: the first term left out is r^8 / 8! < 6e-9.
  float p = 1.0f / 5040.0f;
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * (r * r) + r;
  p = p + 1.0f;
  // 2^n in two factors: 2^128 alone is not a number.
  const auto exponent =
      static_cast<std::int32_t>(std::bit_cast<std::uint32_t>(shifted) - std::bit_cast<std::uint32_t>(kRounder));
  const std::int32_t half = exponent >> 1;
  const float first = std::bit_cast<float>(static_cast<std::uint32_t>(half + 127) << 23);
  const float second = std::bit_cast<float>(static_cast<std::uint32_t>(exponent - half + 127) << 23);
  const float result = p * first * second;
  return x < kSmallest ? 0.0f : result;
}

// g / (1 + e^-g)
ONEREC_INLINE float silu_of(float g) { return g / (1.0f + exp_of(-g)); }

}  // namespace onerec::cpu
