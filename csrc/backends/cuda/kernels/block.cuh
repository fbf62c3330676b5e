// Shared memory, and sums and maxima over the threads of a warp or of a block. Blocks have one dimension and whole
// warps.
#pragma once

#include "backends/cuda/kernels/numeric.cuh"

namespace onerec::cuda::kernels {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ __forceinline__ int warp_index() { return static_cast<int>(threadIdx.x) / kWarp; }

// The block's dynamic shared memory, aligned to 128 bytes; the same address whatever T is.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
#if defined(__CUDACC__)
  extern __shared__ __align__(128) unsigned char onerec_dynamic_shared[];
  return reinterpret_cast<T*>(onerec_dynamic_shared);
#else
  return static_cast<T*>(simt_dynamic_shared());  // the host emulation
#endif
}

// Over groups of kLanes consecutive lanes (a power of two); every lane of the warp takes part and gets its group's
// result. The order of a sum depends on kLanes alone.
template <int kLanes = kWarp>
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

// Sums over groups of 2 * kStep consecutive lanes of kCount values (a power of two, at most that many lanes): lane l of
// a group gets that of values[l / (2 * kStep / kCount)]. Every value is summed in the order of warp_sum<2 * kStep>().
template <int kCount, int kStep = kWarp / 2>
__device__ __forceinline__ float scattered_warp_sum(float (&values)[kCount]) {
  if constexpr (kCount == 1) {
    float sum = values[0];
#pragma unroll
    for (int step = kStep; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
    return sum;
  } else {
    // Half of the lanes keep the lower half of the values, the others the upper one.
    const bool upper = (lane_index() & kStep) != 0;
    float half[kCount / 2];
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      const float kept = upper ? values[kCount / 2 + i] : values[i];
      const float given = upper ? values[i] : values[kCount / 2 + i];
      half[i] = kept + __shfl_xor_sync(kAllLanes, given, kStep);
    }
    return scattered_warp_sum<kCount / 2, kStep / 2>(half);
  }
}

// NaN if any value is.
template <int kLanes = kWarp>
__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) value = max_or_nan(value, __shfl_xor_sync(kAllLanes, value, step));
  return value;
}

// Over the whole warp.
__device__ __forceinline__ std::uint32_t warp_largest(std::uint32_t value) {
#if defined(__CUDA_ARCH__)
  return __reduce_max_sync(kAllLanes, value);
#else
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const std::uint32_t other = __shfl_xor_sync(kAllLanes, value, step);
    value = other > value ? other : value;
  }
  return value;
#endif
}

__device__ __forceinline__ std::uint32_t warp_smallest(std::uint32_t value) { return ~warp_largest(~value); }

// combine(a, b) of all threads' values, for every thread; `neutral` changes nothing. combine is associative and
// commutative up to rounding. Every thread of the block calls it; it may be called again at once.
template <class T, class Combine>
__device__ __forceinline__ T block_reduce(T value, T neutral, Combine combine) {
  __shared__ T parts[kWarp];
  const int warps = static_cast<int>(blockDim.x) / kWarp;
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    value = combine(value, __shfl_xor_sync(kAllLanes, value, step));
  }
  if (warps == 1) return value;
  if (lane_index() == 0) parts[warp_index()] = value;
  __syncthreads();
  value = lane_index() < warps ? parts[lane_index()] : neutral;
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    value = combine(value, __shfl_xor_sync(kAllLanes, value, step));
  }
  __syncthreads();  // before the next call writes `parts`
  return value;
}

__device__ __forceinline__ float block_sum(float value) {
  return block_reduce(value, 0.0f, [](float a, float b) { return a + b; });
}

// NaN if any value is. For values that are not negative.
__device__ __forceinline__ float block_max_magnitude(float value) {
  return block_reduce(value, 0.0f, [](float a, float b) { return max_or_nan(a, b); });
}

}  // namespace onerec::cuda::kernels
