// Conversions of contiguous runs of values, vectorised.
#pragma once

#include <cstdint>

#include "core/bfloat16.h"
#include "core/dtype.h"

namespace onerec::cpu {

void bf16_to_f32(const BFloat16* from, float* to, std::int64_t count);
void f32_to_bf16(const float* from, BFloat16* to, std::int64_t count);  // to nearest even

// E4M3 codes to their values, exactly (a NaN code gives a NaN).
void e4m3_to_bf16(const std::uint8_t* from, BFloat16* to, std::int64_t count);
void e4m3_to_f32(const std::uint8_t* from, float* to, std::int64_t count);

// to[i] = scale * value of from[i]
void e4m3_to_f32(const std::uint8_t* from, float scale, float* to, std::int64_t count);

// to[i] = e4m3(from[i] * inverse); the same codes as to_e4m3.
void f32_to_e4m3(const float* from, float inverse, std::uint8_t* to, std::int64_t count);

// The largest |value| of `count` values, 0 if there are none; NaN if one is.
float largest_magnitude(const float* values, std::int64_t count);

}  // namespace onerec::cpu
