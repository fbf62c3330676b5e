// Products of BF16 matrices on the tensor cores, of what the lanes of a warp hold.
#pragma once

#include "backends/cuda/kernels/block.cuh"
#include "backends/cuda/kernels/numeric.cuh"

namespace onerec::cuda::kernels {

// sums[16 x 8] += a[16 x 16] b[8 x 16]^T of BF16 pairs, in FP32. With g = lane / 4 and q = lane % 4 a lane has of a the
// pairs q and q + 4 of rows g and g + 8 (a[0] and a[2], a[1] and a[3]), of b those of row g, and of the sums columns
// 2q and 2q + 1 of rows g and g + 8. Which columns of K a pair stands for is the caller's business, the same for a and
// b.
__device__ __forceinline__ void add_bfloat_products(float (&sums)[4], const std::uint32_t (&a)[4],
                                                    const std::uint32_t (&b)[2]) {
#if defined(__CUDA_ARCH__)
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  // On the host, which has no such instruction, lane by lane.
  const auto dot = [](std::uint32_t left, std::uint32_t right) {
    return bits_as<float>(left << 16) * bits_as<float>(right << 16) +
           bits_as<float>(left & 0xffff0000u) * bits_as<float>(right & 0xffff0000u);
  };
  const int g = lane_index() / 4;
  const int q = lane_index() % 4;
  for (int other = 0; other < 4; ++other) {
    std::uint32_t rows[4];
    for (int i = 0; i < 4; ++i) rows[i] = __shfl_sync(kAllLanes, a[i], 4 * g + other);
    for (int column = 0; column < 2; ++column) {
      for (int i = 0; i < 2; ++i) {
        const std::uint32_t pair = __shfl_sync(kAllLanes, b[i], 4 * (2 * q + column) + other);
        sums[column] += dot(rows[2 * i], pair);
        sums[2 + column] += dot(rows[2 * i + 1], pair);
      }
    }
  }
#endif
}

}  // namespace onerec::cuda::kernels
