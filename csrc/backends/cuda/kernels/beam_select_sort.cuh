// Keys of candidates in shared memory into their order, by one block.
#pragma once

#include "backends/cuda/kernels/beam_select_bound.cuh"

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

// A bitonic sort of keys[0, count), count a power of two of at least kWarp, largest first. Every thread calls it,
// behind a barrier; ends with one. Equal keys only where they are interchangeable.
__device__ __forceinline__ void sort_descending(std::uint64_t* keys, int count) {
  const int threads = static_cast<int>(blockDim.x);
  for (int i = static_cast<int>(threadIdx.x); i < count; i += threads) {
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
    for (int i = static_cast<int>(threadIdx.x); i < count; i += threads) {
      keys[i] = merge_in_warp(keys[i], i, kWarp, size);
    }
    __syncthreads();
  }
}

// Equal steps of the scores from `highest` down to `lowest`, two for every thread.
struct ScoreBins {
  float highest;
  float per_unit;
  std::uint32_t last;

  __device__ __forceinline__ ScoreBins(float highest_score, float lowest_score) : highest(highest_score) {
    constexpr float kLargest = 3.40282347e+38f;
    last = 2 * blockDim.x - 1;
    per_unit = fminf(static_cast<float>(last) / (highest_score - lowest_score), kLargest);
  }

  __device__ __forceinline__ std::uint32_t operator()(std::uint64_t key) const {
    constexpr float kShift = 8388608.0f;  // 2^23: an integer is the end of its sum's bits
    const float sum = fmaf(highest - score_of(score_part(key)), per_unit, kShift);
    return min(bits_as<std::uint32_t>(sum) - bits_as<std::uint32_t>(kShift), last);
  }
};

// Brings the `wanted` largest of keys[0, count) to the front, largest first. The scores of all are finite and from
// `lowest` to `highest`, which differ. `scratch`: room for `count` keys. False, and nothing done, if too many scores
// are near each other. Every thread calls it, behind a barrier, with clear bins; ends with one and leaves the bins in
// use.
__device__ __forceinline__ bool sort_by_bins(std::uint64_t* keys, std::uint32_t count, std::uint32_t wanted,
                                             float highest, float lowest, std::uint64_t* scratch,
                                             SelectShared& shared) {
  constexpr std::uint32_t kMostInBin = 64;
  const ScoreBins bin_of(highest, lowest);
  std::uint32_t* ends = shared.counters();
  for (std::uint32_t i = threadIdx.x; i < count; i += blockDim.x) atomicAdd(ends + bin_of(keys[i]), 1u);
  __syncthreads();
  const uint2 mine = shared.bins[threadIdx.x];
  if (max(mine.x, mine.y) > kMostInBin) atomicOr(&shared.crowded, 1u);
  const std::uint32_t sum = mine.x + mine.y;
  std::uint32_t before = warp_running_total(sum);
  if (lane_index() == kWarp - 1) shared.warp_totals[warp_index()] = before;
  __syncthreads();
  if (shared.crowded != 0) return false;
  before += warp_total(lane_index() < warp_index() ? shared.warp_totals[lane_index()] : 0) - sum;
  shared.bins[threadIdx.x] = make_uint2(before, before + mine.x);
  __syncthreads();
  for (std::uint32_t i = threadIdx.x; i < count; i += blockDim.x) {
    const std::uint64_t key = keys[i];
    scratch[atomicAdd(ends + bin_of(key), 1u)] = key;
  }
  __syncthreads();
  for (std::uint32_t i = threadIdx.x; i < count; i += blockDim.x) {
    const std::uint64_t key = scratch[i];
    const std::uint32_t bin = bin_of(key);
    const std::uint32_t first = bin == 0 ? 0 : ends[bin - 1];
    if (first >= wanted) continue;
    const std::uint32_t end = ends[bin];
    std::uint32_t rank = first;
    for (std::uint32_t j = first; j < end; ++j) rank += scratch[j] > key ? 1 : 0;
    keys[rank] = key;
  }
  __syncthreads();
  return true;
}

}  // namespace onerec::cuda::kernels
