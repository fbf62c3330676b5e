// SwiGLU of sums that a thread holds, as the grouped kernels apply it.
#pragma once

#include "backends/cuda/kernels/numeric.cuh"

namespace onerec::cuda::kernels {

// a / b within 2 units in the last place for |b| <= 2^126; 0 for finite a and larger b.
__device__ __forceinline__ float near_quotient(float a, float b) {
#if defined(__CUDA_ARCH__)
  float quotient;
  asm("div.approx.ftz.f32 %0, %1, %2;" : "=f"(quotient) : "f"(a), "f"(b));
  return quotient;
#else
  return a / b;
#endif
}

// gates[i] = silu(gates[i]) * ups[i] of both as BF16 holds them.
template <int kCount>
__device__ __forceinline__ void swiglu_products(float (&gates)[kCount], const float (&ups)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    // Both roundings in one instruction; the conversion of a single value is far slower.
    const auto pair = bits_as<std::uint32_t>(__floats2bfloat162_rn(gates[i], ups[i]));
    const auto gate = bits_as<float>(pair << 16);
    const auto up = bits_as<float>(pair & 0xffff0000u);
    gates[i] = near_quotient(gate, 1.0f + expf(-gate)) * up;
  }
}

// E4M3 of a in the lower byte and of b in the upper one. Products with the inverse of a scale: a NaN among them has no
// sign to keep.
__device__ __forceinline__ std::uint32_t code_pair(float a, float b) {
  return static_cast<std::uint32_t>(__nv_cvt_float2_to_fp8x2(make_float2(a, b), __NV_SATFINITE, __NV_E4M3));
}

}  // namespace onerec::cuda::kernels
