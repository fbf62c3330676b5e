// E4M3 (OCP FP8, finite form): 1 sign, 4 exponent (bias 7), 3 mantissa bits; largest 448; S.1111.111 is NaN.
#pragma once

#include <array>
#include <bit>
#include <cstdint>

namespace onerec {

inline constexpr float kE4M3Max = 448.0f;
inline constexpr float kE4M3MinScale = 1e-12f;
inline constexpr std::int64_t kScaleBlock = 128;

// FP32 to E4M3: round to nearest even, saturate to +-448 (infinities too), NaN to NaN, sign of zero kept.
inline std::uint8_t to_e4m3(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 24) & 0x80u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<std::uint8_t>(sign | 0x7fu);
  if (magnitude >= 0x43e00000u) return static_cast<std::uint8_t>(sign | 0x7eu);  // |x| >= 448
  if (magnitude < 0x3c800000u) {                                                 // |x| < 2^-6: subnormal, units of 2^-9
    // Adding 2^14 leaves a unit in the last place of 2^-9: the FP32 addition rounds to nearest even for us.
    const float shifted = std::bit_cast<float>(magnitude) + 16384.0f;
    return static_cast<std::uint8_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x46800000u));
  }
  const std::uint32_t rounded = magnitude + 0x7ffffu + ((magnitude >> 20) & 1u);
  const std::uint32_t code = (rounded >> 20) - ((127u - 7u) << 3);
  return static_cast<std::uint8_t>(sign | (code > 0x7eu ? 0x7eu : code));
}

// Exact; both NaN codes give a NaN.
inline float from_e4m3(std::uint8_t code) {
  const std::uint32_t sign = static_cast<std::uint32_t>(code & 0x80u) << 24;
  const std::uint32_t exponent = (code >> 3) & 0xfu;
  const std::uint32_t mantissa = code & 0x7u;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-9f;
    return std::bit_cast<float>(std::bit_cast<std::uint32_t>(magnitude) | sign);
  }
  if ((code & 0x7fu) == 0x7fu) return std::bit_cast<float>(sign | 0x7fc00000u);
  return std::bit_cast<float>(sign | ((exponent + 127u - 7u) << 23) | (mantissa << 20));
}

// The scale of a group whose largest magnitude is `amax`; see docs/numerics.md.
inline float e4m3_scale(float amax) {
  const float scale = amax / kE4M3Max;
  return scale < kE4M3MinScale ? kE4M3MinScale : scale;
}

// Codes per row of an RMSNorm are those of gamma * x, by a scale that is a power of two: a norm's row is scaled by its
// own root mean square already, so that its scale need not wait for the row's largest value. See docs/numerics.md.

// A power of two next to the root of a mean square: mean_square / power^2 is in [0.5, 2). At the bounds for what lies
// beyond them, or is not finite.
inline float root_power(float mean_square) {
  constexpr int kBound = 48;
  const int exponent = static_cast<int>((std::bit_cast<std::uint32_t>(mean_square) >> 23) & 0xffu) - 127;
  const int half = (exponent + 1) >> 1;
  const int bounded = half < -kBound ? -kBound : half > kBound ? kBound : half;
  return std::bit_cast<float>(static_cast<std::uint32_t>(bounded + 127) << 23);
}

// The scale of the codes of a row whose root_power() is 1: a power of two. A row's largest value may be 224 times
// gamma's largest magnitude, which no row of fewer than 25,000 columns exceeds whose own root it is.
inline float norm_code_scale(float gamma_magnitude) {
  constexpr float kRoom = 0.5f;
  constexpr float kLeast = 0x1p-40f;
  constexpr float kMost = 0x1p40f;
  const float bounded = gamma_magnitude > kLeast ? (gamma_magnitude < kMost ? gamma_magnitude : kMost) : kLeast;
  // The next power of two that is not smaller.
  const std::uint32_t bits = (std::bit_cast<std::uint32_t>(bounded) + 0x7fffffu) & 0xff800000u;
  return kRoom * std::bit_cast<float>(bits);
}

}  // namespace onerec
