// BF16: the upper half of an FP32 value, rounded to nearest even.
#pragma once

#include <bit>
#include <cstdint>

namespace onerec {

struct BFloat16 {
  std::uint16_t bits = 0;
};

// Exact.
inline float to_float(BFloat16 value) { return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16); }

inline float to_float(float value) { return value; }

// Rounds to nearest even; a NaN stays a (quiet) NaN. Branch-free so that loops over it vectorise.
inline BFloat16 to_bfloat16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const std::uint32_t quiet = (bits >> 16) | 0x40u;
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return {static_cast<std::uint16_t>(is_nan ? quiet : rounded)};
}

// An FP32 value rounded to `T` (float: unchanged).
template <class T>
T round_to(float value);
template <>
inline float round_to<float>(float value) {
  return value;
}
template <>
inline BFloat16 round_to<BFloat16>(float value) {
  return to_bfloat16(value);
}

}  // namespace onerec
