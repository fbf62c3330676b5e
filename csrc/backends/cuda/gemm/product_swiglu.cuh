// SwiGLU of sums that a thread holds, as matrix products apply it.
#pragma once

#include "backends/cuda/kernels/numeric.cuh"

namespace onerec::cuda::kernels {

// silu(gate) * up, within 2^-16 of its size; 0 for gates below -87.
__device__ __forceinline__ float silu_product(float gate, float up) {
  constexpr float kLog2E = 1.44269504f;
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(gate * -kLog2E));
  return gate * approximate_inverse(1.0f + power) * up;
}

// gates[i] = silu(gates[i]) * ups[i] of both as BF16 holds them.
template <int kCount>
__device__ __forceinline__ void swiglu_products(float (&gates)[kCount], const float (&ups)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    // Both roundings in one instruction; the conversion of a single value is far slower.
    const auto pair = bits_as<std::uint32_t>(__floats2bfloat162_rn(gates[i], ups[i]));
    gates[i] = silu_product(bits_as<float>(pair << 16), bits_as<float>(pair & 0xffff0000u));
  }
}

// E4M3 of a in the lower byte and of b in the upper one. Products with the inverse of a scale: a NaN among them has no
// sign to keep.
__device__ __forceinline__ std::uint32_t code_pair(float a, float b) {
  return static_cast<std::uint32_t>(__nv_cvt_float2_to_fp8x2(make_float2(a, b), __NV_SATFINITE, __NV_E4M3));
}

}  // namespace onerec::cuda::kernels
