// Conversions between FP32, BF16 and E4M3, the quantiser's formulas, and 16-byte vectors. The roundings are those of
// core/bfloat16.h and core/float8.h; docs/numerics.md has the rules.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace onerec::cuda::kernels {

using bf16 = __nv_bfloat16;

// Columns that share a scale in 1x128 quantisation.
inline constexpr int kScaleBlock = 128;

template <class To, class From>
__device__ __forceinline__ To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same bytes, seen as another type");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

// --- FP32 and BF16 ---

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(bf16 value) { return __bfloat162float(value); }

// Rounds to nearest even. A NaN stays a NaN, of any payload.
template <class T>
__device__ __forceinline__ T from_float(float value) {
  if constexpr (std::is_same_v<T, bf16>) {
    return __float2bfloat16_rn(value);
  } else {
    static_assert(std::is_same_v<T, float>, "FP32 or BF16");
    return value;
  }
}

// The larger one; NaN if either is.
__device__ __forceinline__ float max_or_nan(float a, float b) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
#else
  return a > b || a != a ? a : b;
#endif
}

// 1 / value within 1 unit in the last place; 0 where that is subnormal.
__device__ __forceinline__ float approximate_inverse(float value) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
#else
  const float result = 1.0f / value;
  return fabsf(result) < 1.17549435e-38f ? 0.0f : result;
#endif
}

// 1 / sqrt(value) within 1 unit in the last place. As IEEE has them, root and division are calls, which cost a row's
// norm half a microsecond.
__device__ __forceinline__ float reciprocal_root(float value) {
  constexpr float kLargest = 3.40282347e+38f;
  const float near = rsqrtf(value);
  const float better = fmaf(0.5f * near, fmaf(-value * near, near, 1.0f), near);
  return value > 0.0f && value <= kLargest ? better : near;  // of 0, infinity and NaN it is exact
}

// --- E4M3 ---

// The scale of a group whose largest magnitude is `amax`: amax / 448 rounded to nearest, at least 1e-12. NaN and
// infinity stay.
__device__ __forceinline__ float e4m3_scale(float amax) {
  // A quotient by a constant in three instructions. What is left of the first product is exact, so that the corrected
  // one is rounded as a division is (Markstein, IBM J. Res. Dev. 34, 1990); smaller ones than 1e-12 are not asked for.
  constexpr float kInverse = 1.0f / 448.0f;
  const float near = amax * kInverse;
  const float scale = fmaf(fmaf(-near, 448.0f, amax), kInverse, near);
  const float least = scale >= 1e-12f ? scale : 1e-12f;
  return amax <= 3.40282347e+38f ? least : amax;
}

// 1 / scale, rounded to nearest, of a scale of e4m3_scale(): what the compiler makes of a division, without the call
// for numbers that scales are not.
__device__ __forceinline__ float e4m3_inverse(float scale) {
#if defined(__CUDA_ARCH__)
  const float near = approximate_inverse(scale);
  const float inverse = fmaf(fmaf(-scale, near, 1.0f), near, near);
  return scale > 3.40282347e+38f ? 0.0f : inverse;
#else
  return 1.0f / scale;
#endif
}

// Rounds to nearest even and saturates to +-448. The toolkit's conversion drops the sign of a NaN; it is put back.
__device__ __forceinline__ std::uint8_t to_e4m3(float value) {
  const auto code = static_cast<std::uint32_t>(__nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3));
  return static_cast<std::uint8_t>(code | ((bits_as<std::uint32_t>(value) >> 24) & 0x80u));
}

// Four codes, a in the lowest byte, of values none of which is NaN, or whose NaN need not keep its sign.
__device__ __forceinline__ std::uint32_t numbers_to_e4m3x4(float a, float b, float c, float d) {
  const auto low = static_cast<std::uint32_t>(__nv_cvt_float2_to_fp8x2(make_float2(a, b), __NV_SATFINITE, __NV_E4M3));
  const auto high = static_cast<std::uint32_t>(__nv_cvt_float2_to_fp8x2(make_float2(c, d), __NV_SATFINITE, __NV_E4M3));
  return low | high << 16;
}

// The same of any values.
__device__ __forceinline__ std::uint32_t to_e4m3x4(float a, float b, float c, float d) {
  const std::uint32_t signs =
      ((bits_as<std::uint32_t>(a) >> 24) & 0x80u) | ((bits_as<std::uint32_t>(b) >> 16) & 0x8000u) |
      ((bits_as<std::uint32_t>(c) >> 8) & 0x800000u) | (bits_as<std::uint32_t>(d) & 0x80000000u);
  return numbers_to_e4m3x4(a, b, c, d) | signs;
}

// Exact; both NaN codes give a NaN.
__device__ __forceinline__ float from_e4m3(std::uint8_t code) {
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(code, __NV_E4M3)));
}

__device__ __forceinline__ void from_e4m3x4(std::uint32_t codes, float (&values)[4]) {
  const float2 low = __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(codes & 0xffffu, __NV_E4M3)));
  const float2 high = __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(codes >> 16, __NV_E4M3)));
  values[0] = low.x;
  values[1] = low.y;
  values[2] = high.x;
  values[3] = high.y;
}

// --- vectors of 16 bytes: 4 FP32, 8 BF16 or 16 codes, at an address that is a multiple of 16 ---

template <class T>
inline constexpr int kVector = static_cast<int>(16 / sizeof(T));

template <class T>
__device__ __forceinline__ uint4 load_vector(const T* from) {
  return *reinterpret_cast<const uint4*>(from);
}

// Multiples of four floats, 16 bytes at a time.
template <int kCount>
__device__ __forceinline__ void load_floats(const float* from, float (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    const float4 four = *reinterpret_cast<const float4*>(from + i);
    values[i] = four.x;
    values[i + 1] = four.y;
    values[i + 2] = four.z;
    values[i + 3] = four.w;
  }
}

template <class T>
__device__ __forceinline__ void store_vector(T* to, uint4 vector) {
  *reinterpret_cast<uint4*>(to) = vector;
}

template <class T>
__device__ __forceinline__ void unpack(uint4 vector, float (&values)[kVector<T>]) {
  const std::uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
  if constexpr (std::is_same_v<T, bf16>) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      values[2 * i] = bits_as<float>(words[i] << 16);
      values[2 * i + 1] = bits_as<float>(words[i] & 0xffff0000u);
    }
  } else {
    static_assert(std::is_same_v<T, float>, "FP32 or BF16");
#pragma unroll
    for (int i = 0; i < 4; ++i) values[i] = bits_as<float>(words[i]);
  }
}

// Rounds.
template <class T>
__device__ __forceinline__ uint4 pack(const float (&values)[kVector<T>]) {
  std::uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (std::is_same_v<T, bf16>) {
      words[i] = bits_as<std::uint32_t>(__floats2bfloat162_rn(values[2 * i], values[2 * i + 1]));
    } else {
      static_assert(std::is_same_v<T, float>, "FP32 or BF16");
      words[i] = bits_as<std::uint32_t>(values[i]);
    }
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

}  // namespace onerec::cuda::kernels
