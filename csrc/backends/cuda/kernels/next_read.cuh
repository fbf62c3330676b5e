// Bringing what the next kernels read into L2, while a kernel leaves memory idle.
#pragma once

#include "backends/cuda/kernels/async_copy.cuh"

namespace onerec::cuda::kernels {

// A weight, or the beginning of one: both numbers are multiples of 16. No bytes: nothing.
struct NextRead {
  const std::uint8_t* data = nullptr;
  std::int64_t bytes = 0;
};

// Each block asks for its share. Comes before the wait for the previous kernel: no kernel writes weights.
__device__ __forceinline__ void prefetch_share(const NextRead& next) {
  if (threadIdx.x != 0 || next.bytes == 0) return;
  constexpr std::int64_t kStep = 128;
  const std::int64_t share = (next.bytes + gridDim.x * kStep - 1) / (gridDim.x * kStep) * kStep;
  const std::int64_t begin = blockIdx.x * share;
  if (begin >= next.bytes) return;
  prefetch_to_l2(next.data + begin, static_cast<std::uint32_t>(min(share, next.bytes - begin)));
}

}  // namespace onerec::cuda::kernels
