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
  const std::uint32_t sign = (bits >> 24) & 0x80u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  const float shifted = std::bit_cast<float>(magnitude) + 16384.0f;
  const std::uint32_t subnormal = std::bit_cast<std::uint32_t>(shifted) - 0x46800000u;
  const std::uint32_t rounded = (magnitude + 0x7ffffu + ((magnitude >> 20) & 1u)) >> 20;
  const std::uint32_t normal = rounded - ((127u - 7u) << 3);
  const std::uint32_t saturated = magnitude >= 0x43e00000u ? 0x7eu : (magnitude < 0x3c800000u ? subnormal : normal);
  return sign | (magnitude > 0x7f800000u ? 0x7fu : saturated);
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
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) {
    // Four significant bits: the lower half is zero but for the NaN, which stays one when cut off.
    to[i].bits = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value_of(from[i])) >> 16);
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
  // As integers, magnitudes order like their values, and an integer maximum is a reduction that vectorises without
  // -ffast-math.
  std::uint32_t largest = 0;
#pragma omp simd reduction(max : largest)
  for (std::int64_t i = 0; i < count; ++i) {
    const std::uint32_t magnitude = std::bit_cast<std::uint32_t>(values[i]) & 0x7fffffffu;
    const std::uint32_t number = magnitude > 0x7f800000u ? 0u : magnitude;
    largest = number > largest ? number : largest;
  }
  return std::bit_cast<float>(largest);
}

}  // namespace onerec::cpu
