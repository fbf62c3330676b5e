// The best of a set of keys that one block goes through as often as it needs. A set has a member
// `template <class Visit> void for_each(Visit visit) const` that hands the keys to the threads in batches: every thread
// calls visit(keys), an array that holds 0, which is no key, where there is none, as often as the others. Keys differ
// from each other.
#pragma once

#include "backends/cuda/kernels/beam_score.cuh"

namespace onerec::cuda::kernels {

inline constexpr int kDigitBits = 11;
inline constexpr int kBins = 1 << kDigitBits;

struct BoundShared {
  std::uint32_t bins[kBins];
  std::uint32_t warp_totals[kWarp];
  std::uint32_t warp_largest[kWarp];
  std::uint32_t warp_smallest[kWarp];
  std::uint32_t total;   // of all bins
  std::uint32_t digit;   // the bin in which the rank lies
  std::uint32_t above;   // in the bins above it
  std::uint32_t inside;  // in that bin
  std::uint32_t count;   // of collect()
};

// Finds the bin that holds the rank-th largest digit (from 1); leaves `digit` alone if there are fewer. Every thread
// calls it, behind a barrier; ends with one.
__device__ __forceinline__ void find_bin(BoundShared& shared, std::uint32_t rank) {
  const int threads = static_cast<int>(blockDim.x);
  const int per_thread = kBins / threads;
  const int top = kBins - 1 - static_cast<int>(threadIdx.x) * per_thread;
  std::uint32_t mine = 0;
  for (int i = 0; i < per_thread; ++i) mine += shared.bins[top - i];
  std::uint32_t upto = mine;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const std::uint32_t other = __shfl_up_sync(kAllLanes, upto, step);
    if (lane_index() >= step) upto += other;
  }
  if (lane_index() == kWarp - 1) shared.warp_totals[warp_index()] = upto;
  __syncthreads();
  std::uint32_t before = lane_index() < warp_index() ? shared.warp_totals[lane_index()] : 0;
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) before += __shfl_xor_sync(kAllLanes, before, step);
  upto += before;
  if (static_cast<int>(threadIdx.x) == threads - 1) shared.total = upto;
  before = upto - mine;
  if (before < rank && rank <= upto) {
    for (int i = 0; i < per_thread; ++i) {
      const std::uint32_t inside = shared.bins[top - i];
      if (before < rank && rank <= before + inside) {
        shared.digit = static_cast<std::uint32_t>(top - i);
        shared.above = before;
        shared.inside = inside;
      }
      before += inside;
    }
  }
  __syncthreads();
}

// The highest bits that the scores of all keys share, and how many bits are below them; 64 if there is no key. Every
// thread calls it and gets the same; holds a barrier.
struct CommonBits {
  std::uint64_t bits;
  int below;
};

template <class Keys>
__device__ __forceinline__ CommonBits common_bits(const Keys& keys, BoundShared& shared) {
  std::uint32_t largest = 0;
  std::uint32_t smallest = ~0u;
  keys.for_each([&](const auto& batch) {
    for (const std::uint64_t key : batch) {
      if (key == 0) continue;
      largest = max(largest, score_part(key));
      smallest = min(smallest, score_part(key));
    }
  });
  largest = warp_largest(largest);
  smallest = warp_smallest(smallest);
  if (lane_index() == 0) {
    shared.warp_largest[warp_index()] = largest;
    shared.warp_smallest[warp_index()] = smallest;
  }
  __syncthreads();
  const bool mine = lane_index() < static_cast<int>(blockDim.x) / kWarp;
  largest = warp_largest(mine ? shared.warp_largest[lane_index()] : 0);
  smallest = warp_smallest(mine ? shared.warp_smallest[lane_index()] : ~0u);
  if (largest < smallest) return {0, 64};
  const int below = 64 - __clz(static_cast<int>(largest ^ smallest));  // the place is below all scores
  return {below == 64 ? 0 : static_cast<std::uint64_t>(largest) << 32 >> below << below, below};
}

// A bound such that at least `rank` keys and at most `limit` (>= rank) are >= it; 1, which all keys are, where there
// are fewer than `rank`. Every thread calls it and gets the same bound.
template <class Keys>
__device__ __forceinline__ std::uint64_t find_bound(const Keys& keys, std::uint32_t rank, std::uint32_t limit,
                                                    BoundShared& shared) {
  const CommonBits common = common_bits(keys, shared);
  std::uint64_t bound = common.bits;
  std::uint32_t above = 0;
  int fixed = common.below;  // the bits from here on are those of `bound`
  bool counted = false;
  while (fixed > 0) {
    const int bits = fixed < kDigitBits ? fixed : kDigitBits;
    const int shift = fixed - bits;
    const std::uint32_t mask = (1u << bits) - 1;
    for (int i = static_cast<int>(threadIdx.x); i < kBins; i += static_cast<int>(blockDim.x)) shared.bins[i] = 0;
    __syncthreads();
    keys.for_each([&](const auto& batch) {
      for (const std::uint64_t key : batch) {
        if (key == 0 || (fixed < 64 && (key ^ bound) >> fixed != 0)) continue;
        atomicAdd(&shared.bins[static_cast<std::uint32_t>(key >> shift) & mask], 1u);
      }
    });
    __syncthreads();
    find_bin(shared, rank - above);
    if (!counted && shared.total < rank) return 1;
    counted = true;
    bound |= static_cast<std::uint64_t>(shared.digit) << shift;
    above += shared.above;
    if (above + shared.inside <= limit) break;
    fixed = shift;
  }
  return bound == 0 ? 1 : bound;
}

// Writes the keys >= bound (> 0) to `list`, in any order, as far as `capacity` reaches. Returns how many there are.
template <class Keys>
__device__ __forceinline__ std::uint32_t collect(const Keys& keys, std::uint64_t bound, std::uint64_t* list,
                                                 std::uint32_t capacity, BoundShared& shared) {
  __syncthreads();
  if (threadIdx.x == 0) shared.count = 0;
  __syncthreads();
  keys.for_each([&](const auto& batch) {
    std::uint32_t mine = 0;
    for (const std::uint64_t key : batch) mine += key >= bound ? 1 : 0;
    std::uint32_t upto = mine;
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      const std::uint32_t other = __shfl_up_sync(kAllLanes, upto, step);
      if (lane_index() >= step) upto += other;
    }
    std::uint32_t first = 0;
    if (lane_index() == kWarp - 1 && upto > 0) first = atomicAdd(&shared.count, upto);
    std::uint32_t place = __shfl_sync(kAllLanes, first, kWarp - 1) + upto - mine;
    for (const std::uint64_t key : batch) {
      if (key < bound) continue;
      if (place < capacity) list[place] = key;
      ++place;
    }
  });
  __syncthreads();
  return shared.count;
}

}  // namespace onerec::cuda::kernels
