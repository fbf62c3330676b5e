// Products of E4M3 codes that the lanes of a warp hold, summed on the tensor cores without moving any.
#pragma once

#include "backends/cuda/kernels/block.cuh"
#include "backends/cuda/kernels/numeric.cuh"

namespace onerec::cuda::kernels {

// The dot products of two vectors with a third, whose elements are spread over the lanes of a warp alike: a lane has 16
// of each at a time.
//
// The matrix instruction multiplies 16 rows of 32 codes by 8 columns. Rows 0 to 7 are the first vector's codes of lanes
// 0 to 3, 4 to 7, ..., rows 8 to 15 the second one's, columns the third one's: each lane's registers are what it has.
// Of the sums only those of the same four lanes' row and column are wanted, an eighth of all; the conversions that
// ordinary cores would need take far longer. The compiler turns codes into FP16, exactly, and sums in FP32. On the
// host, which has no such instruction, every lane adds up its own products.
class CodeProducts {
 public:
  // All lanes of the warp.
  __device__ __forceinline__ void add(const uint4& first, const uint4& second, const uint4& third) {
#if defined(__CUDA_ARCH__)
    multiply(first.x, second.x, first.y, second.y, third.x, third.y);
    multiply(first.z, second.z, first.w, second.w, third.z, third.w);
#else
    sums_[0] += dot(first, third);
    sums_[1] += dot(second, third);
#endif
  }

  // What this lane has of the sum of the first (0) or the second (1) vector's products; over the warp they add up to
  // it.
  __device__ __forceinline__ float share(int vector) const {
#if defined(__CUDA_ARCH__)
    const int row = lane_index() / 4;
    // This lane's sums are of row `row` and of columns 2 * (lane % 4) and the next.
    if (lane_index() % 4 != row / 2) return 0.0f;
    return row % 2 == 0 ? sums_[2 * vector] : sums_[2 * vector + 1];
#else
    return sums_[vector];
#endif
  }

 private:
#if defined(__CUDA_ARCH__)
  __device__ __forceinline__ void multiply(std::uint32_t a0, std::uint32_t a1, std::uint32_t a2, std::uint32_t a3,
                                           std::uint32_t b0, std::uint32_t b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums_[0]), "+f"(sums_[1]), "+f"(sums_[2]), "+f"(sums_[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
#else
  __device__ static float dot(const uint4& a, const uint4& b) {
    const std::uint32_t left[4] = {a.x, a.y, a.z, a.w};
    const std::uint32_t right[4] = {b.x, b.y, b.z, b.w};
    float sum = 0.0f;
    for (int i = 0; i < 4; ++i) {
      float x[4];
      float y[4];
      from_e4m3x4(left[i], x);
      from_e4m3x4(right[i], y);
      for (int j = 0; j < 4; ++j) sum = fmaf(x[j], y[j], sum);
    }
    return sum;
  }
#endif

  float sums_[4] = {};
};

}  // namespace onerec::cuda::kernels
