#include "backends/cpu/convert.h"

#include <bit>

#include "backends/cpu/vector_math.h"
#include "core/float8.h"
#include "core/multiversion.h"

namespace onerec::cpu {
namespace {

// from_e4m3 without a branch: the fields move to FP32's places and bias. A subnormal code has no leading 1: read with
// one, at the next exponent, it is 2^-6 too large, and the subtraction is exact.
ONEREC_INLINE float value_of(std::uint32_t code) {
  const std::uint32_t magnitude = code & 0x7fu;
  const std::uint32_t sign = (code & 0x80u) << 24;
  const std::uint32_t subnormal = 0u - static_cast<std::uint32_t>(magnitude < 8u);
  const std::uint32_t nan = 0u - static_cast<std::uint32_t>(magnitude == 0x7fu);
  const std::uint32_t with_leading_one = (magnitude << 20) + ((127u - 7u) << 23) + (subnormal & (1u << 23));
  const float finite = std::bit_cast<float>(with_leading_one) - std::bit_cast<float>(subnormal & 0x3c800000u);
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(finite) | sign | (nan & 0x7fc00000u));
}

// to_e4m3 without a branch: both roundings are computed and one is chosen.
ONEREC_INLINE std::uint32_t code_of(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const float magnitude = std::bit_cast<float>(bits & 0x7fffffffu);
  const float bounded = magnitude < kE4M3Max ? magnitude : kE4M3Max;
  const auto bounded_bits = std::bit_cast<std::uint32_t>(bounded);
  const std::uint32_t subnormal = std::bit_cast<std::uint32_t>(bounded + 16384.0f) - 0x46800000u;
  const std::uint32_t normal = ((bounded_bits + 0x7ffffu + ((bounded_bits >> 20) & 1u)) >> 20) - ((127u - 7u) << 3);
  const std::uint32_t code = bounded < 0x1p-6f ? subnormal : normal;
  return ((bits >> 24) & 0x80u) | (magnitude != magnitude ? 0x7fu : code);
}

}  // namespace

ONEREC_MULTIVERSION
void bf16_to_f32(const BFloat16* from, float* to, std::int64_t count) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) to[i] = to_float(from[i]);
}

ONEREC_MULTIVERSION
void f32_to_bf16(const float* from, BFloat16* to, std::int64_t count) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) to[i] = to_bfloat16(from[i]);
}

ONEREC_MULTIVERSION
void e4m3_to_bf16(const std::uint8_t* from, BFloat16* to, std::int64_t count) {
  // In lanes of 16 bits: the value has four significant bits, so that the upper half of FP32 is all of it.
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) {
    const auto code = static_cast<std::uint16_t>(from[i]);
    const auto magnitude = static_cast<std::uint16_t>(code & 0x7f);
    const auto sign = static_cast<std::uint16_t>((code & 0x80) << 8);
    const auto normal = static_cast<std::uint16_t>((magnitude << 4) + ((127 - 7) << 7));
    // The subnormal codes 1, 2 to 3 and 4 to 7 have the exponents -9, -8 and -7.
    const auto four = static_cast<std::uint16_t>(0x3b80 + (magnitude << 5));
    const auto two = static_cast<std::uint16_t>(0x3b00 + (magnitude << 6));
    const auto one = static_cast<std::uint16_t>(magnitude == 1 ? 0x3b00 : 0);
    const std::uint16_t below_four = magnitude >= 2 ? two : one;
    const std::uint16_t subnormal = magnitude >= 4 ? four : below_four;
    const std::uint16_t finite = magnitude >= 8 ? normal : subnormal;
    to[i].bits = static_cast<std::uint16_t>(sign | (magnitude == 0x7f ? 0x7fc0 : finite));
  }
}

ONEREC_MULTIVERSION
void e4m3_to_f32(const std::uint8_t* from, float* to, std::int64_t count) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) to[i] = value_of(from[i]);
}

ONEREC_MULTIVERSION
void e4m3_to_f32(const std::uint8_t* from, float scale, float* to, std::int64_t count) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) to[i] = scale * value_of(from[i]);
}

ONEREC_MULTIVERSION
void f32_to_e4m3(const float* from, float inverse, std::uint8_t* to, std::int64_t count) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) to[i] = static_cast<std::uint8_t>(code_of(from[i] * inverse));
}

ONEREC_MULTIVERSION
float largest_magnitude(const float* values, std::int64_t count) {
  // As integers, magnitudes order like their values with NaN on top, and an integer maximum is a reduction that
  // vectorises.
  std::uint32_t largest = 0;
#pragma omp simd reduction(max : largest)
  for (std::int64_t i = 0; i < count; ++i) {
    const std::uint32_t magnitude = std::bit_cast<std::uint32_t>(values[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  return std::bit_cast<float>(largest);
}

}  // namespace onerec::cpu
