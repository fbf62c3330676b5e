// The best of a set of keys that one block goes through as often as it needs. A set has a member
// `template <class Visit> void for_each(Visit visit) const` that hands the keys to the threads in batches: every thread
// calls visit(batch) as often as the others. Key k < batch.kKeys of a batch has a score, batch.key(k), which is 0 where
// there is no key, and a place, batch.place(k). Places differ from each other.
#pragma once

#include "backends/cuda/kernels/beam_score.cuh"

namespace onerec::cuda::kernels {

inline constexpr int kSelectThreads = 1024;
inline constexpr int kCollections = 6;

// Blocks have a power of two of threads, at least kWarp.
struct SelectShared {
  uint2 bins[kSelectThreads];  // two counters of every thread; all 0 between uses
  std::uint32_t warp_totals[kWarp];
  std::uint32_t warp_highest[kWarp];
  std::uint32_t warp_lowest[kWarp];
  std::uint32_t warp_filled[kWarp];
  std::uint32_t bin;     // of find_bin()
  std::uint32_t above;   // in the bins before it
  std::uint32_t inside;  // in that bin
  std::uint32_t crowded;
  std::uint32_t counts[kCollections];  // of collect()

  // A barrier has to follow.
  __device__ __forceinline__ void clear() {
    bins[threadIdx.x] = make_uint2(0, 0);
    if (threadIdx.x < kCollections) counts[threadIdx.x] = 0;
    if (threadIdx.x == 0) crowded = 0;
  }

  __device__ __forceinline__ std::uint32_t* counters() { return reinterpret_cast<std::uint32_t*>(bins); }
};

__device__ __forceinline__ std::uint32_t warp_total(std::uint32_t value) {
#if defined(__CUDA_ARCH__)
  return __reduce_add_sync(kAllLanes, value);
#else
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
#endif
}

// The sum up to and with the own lane.
__device__ __forceinline__ std::uint32_t warp_running_total(std::uint32_t value) {
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const std::uint32_t other = __shfl_up_sync(kAllLanes, value, step);
    if (lane_index() >= step) value += other;
  }
  return value;
}

// Finds the bin that holds the rank-th key (from 1) if bin 0 holds the first ones, and clears the bins. Returns how
// many keys there are; leaves `bin` alone if they are fewer. Every thread calls it, behind a barrier; ends with one.
__device__ __forceinline__ std::uint32_t find_bin(SelectShared& shared, std::uint32_t rank) {
  const uint2 mine = shared.bins[threadIdx.x];
  shared.bins[threadIdx.x] = make_uint2(0, 0);
  const std::uint32_t sum = mine.x + mine.y;
  const std::uint32_t of_warp = warp_total(sum);
  if (lane_index() == 0) shared.warp_totals[warp_index()] = of_warp;
  __syncthreads();
  const bool is_warp = lane_index() < static_cast<int>(blockDim.x) / kWarp;
  const std::uint32_t totals = is_warp ? shared.warp_totals[lane_index()] : 0;
  std::uint32_t before = warp_total(lane_index() < warp_index() ? totals : 0);
  if (before < rank && rank <= before + of_warp) {  // the same for all lanes
    before += warp_running_total(sum) - sum;
    if (before < rank && rank <= before + sum) {
      const bool second = rank > before + mine.x;
      shared.bin = 2 * threadIdx.x + (second ? 1 : 0);
      shared.above = before + (second ? mine.x : 0);
      shared.inside = second ? mine.y : mine.x;
    }
  }
  __syncthreads();
  return warp_total(totals);
}

// Values that are still in question: those from `lowest` to `highest`; `above` keys have higher ones.
struct Interval {
  std::uint32_t lowest;
  std::uint32_t highest;
  std::uint32_t above;
  std::uint32_t inside;
};

// Narrows an interval around the rank-th highest value until at most `limit` keys are in it or above, or it is a single
// value. `visit_values(count)` calls count(value) for every key; the bins are clear for all threads. False if fewer
// than `rank` keys are in the interval or above.
template <class VisitValues>
__device__ __forceinline__ bool narrow(Interval& interval, std::uint32_t rank, std::uint32_t limit,
                                       SelectShared& shared, VisitValues visit_values) {
  const int bin_bits = kWarp - __clz(static_cast<int>(blockDim.x));  // two bins a thread
  while (true) {
    const std::uint32_t lowest = interval.lowest;
    const std::uint32_t highest = interval.highest;
    const std::uint32_t range = highest - lowest;
    const int shift = max(32 - __clz(static_cast<int>(range)) - bin_bits, 0);
    visit_values([&](std::uint32_t value) {
      const std::uint32_t below = highest - value;  // wraps around for what is above
      if (below <= range) atomicAdd(shared.counters() + (below >> shift), 1u);
    });
    __syncthreads();
    if (find_bin(shared, rank - interval.above) < rank - interval.above) return false;
    interval.above += shared.above;
    interval.inside = shared.inside;
    interval.highest = highest - (shared.bin << shift);
    const std::uint32_t width = (1u << shift) - 1;
    interval.lowest = interval.highest - lowest <= width ? lowest : interval.highest - width;
    if (interval.above + interval.inside <= limit || shift == 0) return true;
  }
}

// All keys reach it.
inline constexpr std::uint64_t kLowestBound = std::uint64_t{1} << 32;

struct Bound {
  std::uint64_t least;    // a ranked key, at least kLowestBound
  std::uint32_t highest;  // the score of the first of all keys, 0 if there is none
};

// A bound such that at least `rank` keys and at most `limit` (>= rank) reach it; kLowestBound where there are fewer
// than `rank`. Every thread calls it, with clear bins, and gets the same.
template <class Keys>
__device__ __forceinline__ Bound find_bound(const Keys& keys, std::uint32_t rank, std::uint32_t limit,
                                            SelectShared& shared) {
  // With as many keys as threads that hold any, none has to be below what is the best of one of these threads.
  const bool best_of_thread = rank <= blockDim.x;
  std::uint32_t highest = 0;
  std::uint32_t lowest = ~0u;
  keys.for_each([&](const auto& batch) {
#pragma unroll
    for (int k = 0; k < batch.kKeys; ++k) {
      const std::uint32_t key = batch.key(k);
      highest = max(highest, key);
      if (!best_of_thread && key != 0) lowest = min(lowest, key);
    }
  });
  if (best_of_thread && highest != 0) lowest = highest;
  const auto filled = static_cast<std::uint32_t>(__popc(__ballot_sync(kAllLanes, highest != 0)));
  highest = warp_largest(highest);
  lowest = warp_smallest(lowest);
  if (lane_index() == 0) {
    shared.warp_highest[warp_index()] = highest;
    shared.warp_lowest[warp_index()] = lowest;
    shared.warp_filled[warp_index()] = filled;
  }
  __syncthreads();
  const bool is_warp = lane_index() < static_cast<int>(blockDim.x) / kWarp;
  highest = warp_largest(is_warp ? shared.warp_highest[lane_index()] : 0);
  lowest = warp_smallest(is_warp ? shared.warp_lowest[lane_index()] : ~0u);
  if (best_of_thread && warp_total(is_warp ? shared.warp_filled[lane_index()] : 0) < rank) lowest = 1;
  if (highest == 0) return {kLowestBound, 0};

  Interval scores{lowest, highest, 0, 0};
  const bool enough = narrow(scores, rank, limit, shared, [&](auto count) {
    keys.for_each([&](const auto& batch) {
#pragma unroll
      for (int k = 0; k < batch.kKeys; ++k) count(batch.key(k));
    });
  });
  if (!enough) return {kLowestBound, highest};
  const std::uint64_t least = static_cast<std::uint64_t>(scores.lowest) << 32;
  if (scores.above + scores.inside <= limit) return {least, highest};

  Interval places{0, ~0u, scores.above, 0};  // of one score; earlier places are higher values
  narrow(places, rank, limit, shared, [&](auto count) {
    keys.for_each([&](const auto& batch) {
#pragma unroll
      for (int k = 0; k < batch.kKeys; ++k) {
        if (batch.key(k) == scores.lowest) count(~batch.place(k));
      }
    });
  });
  return {least | places.lowest, highest};
}

// Calls write(at, batch, k) for the keys for which reaches(batch, k), `at` counting up from 0 in any order, as far as
// `capacity` reaches. Returns how many there are. `count`, in shared memory, is 0 for all threads. Ends with a barrier.
template <class Keys, class Reaches, class Write>
__device__ __forceinline__ std::uint32_t collect(const Keys& keys, std::uint32_t capacity, std::uint32_t& count,
                                                 Reaches reaches, Write write) {
  keys.for_each([&](const auto& batch) {
    std::uint32_t mine = 0;
#pragma unroll
    for (int k = 0; k < batch.kKeys; ++k) mine += reaches(batch, k) ? 1 : 0;
    const std::uint32_t upto = warp_running_total(mine);
    std::uint32_t first = 0;
    if (lane_index() == kWarp - 1 && upto > 0) first = atomicAdd(&count, upto);
    std::uint32_t at = __shfl_sync(kAllLanes, first, kWarp - 1) + upto - mine;
#pragma unroll
    for (int k = 0; k < batch.kKeys; ++k) {
      if (!reaches(batch, k)) continue;
      if (at < capacity) write(at, batch, k);
      ++at;
    }
  });
  __syncthreads();
  return count;
}

template <class Batch>
__device__ __forceinline__ std::uint64_t ranked_key_of(const Batch& batch, int k) {
  return ranked_key(batch.key(k), batch.place(k));
}

}  // namespace onerec::cuda::kernels
