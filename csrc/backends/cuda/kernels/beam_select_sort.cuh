// A bitonic sort of keys in shared memory by one block: steps between elements less than a warp apart go through
// registers.
#pragma once

#include "backends/cuda/kernels/block.cuh"

namespace onerec::cuda::kernels {

// The steps below `size` (at most kWarp) of the element at position `i`, which a lane holds; `size_of_run`: the runs of
// so many elements descend and ascend in turn.
__device__ __forceinline__ std::uint64_t merge_in_warp(std::uint64_t key, int i, int size, int size_of_run) {
  const bool descending = (i & size_of_run) == 0;
  for (int step = size / 2; step > 0; step /= 2) {
    const std::uint64_t other = __shfl_xor_sync(kAllLanes, key, step);
    const bool wants_larger = ((i & step) == 0) == descending;
    if ((other > key) == wants_larger) key = other;
  }
  return key;
}

// Sorts keys[0, count), count a power of two of at least kWarp, largest first. Every thread calls it, behind a barrier;
// ends with one. Equal keys only where they are interchangeable.
__device__ __forceinline__ void sort_descending(std::uint64_t* keys, int count) {
  const int threads = static_cast<int>(blockDim.x);
  const int segments_apart = threads;  // a warp's next segment of kWarp keys
  for (int i = static_cast<int>(threadIdx.x); i < count; i += segments_apart) {
    std::uint64_t key = keys[i];
    for (int size = 2; size <= kWarp; size *= 2) key = merge_in_warp(key, i, size, size);
    keys[i] = key;
  }
  __syncthreads();
  for (int size = 2 * kWarp; size <= count; size *= 2) {
    for (int step = size / 2; step >= kWarp; step /= 2) {
      for (int pair = static_cast<int>(threadIdx.x); pair < count / 2; pair += threads) {
        const int i = 2 * pair - (pair & (step - 1));
        const std::uint64_t a = keys[i], b = keys[i + step];
        if ((b > a) == ((i & size) == 0)) {
          keys[i] = b;
          keys[i + step] = a;
        }
      }
      __syncthreads();
    }
    for (int i = static_cast<int>(threadIdx.x); i < count; i += segments_apart) {
      keys[i] = merge_in_warp(keys[i], i, kWarp, size);
    }
    __syncthreads();
  }
}

}  // namespace onerec::cuda::kernels
