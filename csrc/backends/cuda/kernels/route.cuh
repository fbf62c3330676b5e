// Routing of a mixture of experts: the best experts of every row, then the (row, choice) pairs sorted by expert. The
// rows are cut into chunks, one per block. Counts per chunk and expert say where the pairs of a chunk begin, so that
// the order is that of a stable sort whichever block runs first.
#pragma once

#include "backends/cuda/kernels/block.cuh"
#include "backends/cuda/kernels/grid_dependency.cuh"

namespace onerec::cuda::kernels {

inline constexpr int kRouteMaxExperts = 512;
inline constexpr int kRouteMaxTopK = kWarp;
inline constexpr int kRouteThreads = 512;
inline constexpr int kRouteSmallThreads = 1024;
inline constexpr int kPlaceThreads = 256;
inline constexpr int kPlaceWarps = kPlaceThreads / kWarp;

struct RouterParams {
  const float* logits;  // [rows, experts], rows `logits_stride` apart
  std::int64_t logits_stride;
  const float* bias;  // [experts]
  int experts;        // at most kRouteMaxExperts
  int top_k;          // at most kRouteMaxTopK
  bool softmax;
  bool normalize;
  float scaling_factor;
  int alignment;
  std::int32_t* selected;  // [rows, top_k]
  float* weights;          // [rows, top_k]
  std::int32_t* offsets;   // [experts + 1]
  std::int32_t* slots;     // [rows, top_k]
  std::int32_t* sources;   // [offsets[experts]]
  std::int32_t* counts;    // [chunks, experts]: scratch
  int chunk_rows;
  std::int64_t rows;          // capacity
  const std::int32_t* count;  // live rows; null: all
};

// Shared memory of the kernels that place pairs.
struct PlaceShared {
  int* totals;  // [experts]: pairs of each expert
  int* before;  // [experts]: those of them in earlier chunks
  int* starts;  // [experts + 1]: the offsets
  int* cursor;  // [kPlaceWarps, experts]: a warp's pairs, then its next slot

  __device__ __forceinline__ PlaceShared(int* shared, int experts)
      : totals(shared), before(totals + experts), starts(before + experts), cursor(starts + experts + 1) {}
};

__host__ __device__ constexpr int place_shared_ints(int experts) { return experts * (3 + kPlaceWarps) + 1; }

// Ordered like the floats, both zeros alike, a NaN below all numbers. Never 0.
__device__ __forceinline__ std::uint32_t ranking_key(float ranking) {
  if (ranking != ranking) return 1;
  const auto bits = bits_as<std::uint32_t>(ranking + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ std::int64_t live_rows(const RouterParams& p) {
  return p.count == nullptr ? p.rows : *p.count;
}

// Experts e = slot * 32 + lane, kSlots of them per lane.
template <int kSlots>
struct LaneExperts {
  float values[kSlots];

  __device__ __forceinline__ void load(const float* from, int experts, float missing) {
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      const int e = i * kWarp + lane_index();
      values[i] = e < experts ? from[e] : missing;
    }
  }
};

// Logits to scores.
template <int kSlots>
__device__ __forceinline__ void score(const RouterParams& p, LaneExperts<kSlots>& row) {
  if (!p.softmax) {
#pragma unroll
    for (int i = 0; i < kSlots; ++i) row.values[i] = 1.0f / (1.0f + expf(-row.values[i]));
    return;
  }
  float largest = row.values[0];
#pragma unroll
  for (int i = 1; i < kSlots; ++i) largest = max_or_nan(largest, row.values[i]);
  largest = warp_max(largest);
  float total = 0.0f;
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    row.values[i] = expf(row.values[i] - largest);  // 0 for the lanes without an expert, whose logit is -inf
    total += row.values[i];
  }
  total = warp_sum(total);
#pragma unroll
  for (int i = 0; i < kSlots; ++i) row.values[i] /= total;
}

// A warp routes a row of these logits. Lane j < top_k gets the row's j-th expert, the others -1.
template <int kSlots>
__device__ __forceinline__ int route_row(const RouterParams& p, const LaneExperts<kSlots>& bias, std::int64_t r,
                                         const float* logits) {
  const int lane = lane_index();
  LaneExperts<kSlots> scores;
  scores.load(logits, p.experts, -INFINITY);
  score(p, scores);
  std::uint32_t keys[kSlots];  // 0: no expert, or chosen already
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    keys[i] = i * kWarp + lane < p.experts ? ranking_key(scores.values[i] + bias.values[i]) : 0;
  }

  int own_expert = -1;
  float own_score = 0.0f;
  float sum = 0.0f;
  for (int j = 0; j < p.top_k; ++j) {
    std::uint32_t best = keys[0];
    float best_score = scores.values[0];
    int slot = 0;
#pragma unroll
    for (int i = 1; i < kSlots; ++i) {
      if (keys[i] <= best) continue;
      best = keys[i];
      best_score = scores.values[i];
      slot = i;
    }
    const std::uint32_t winner = warp_largest(best);
    const auto index = static_cast<std::uint32_t>(slot * kWarp + lane);
    const std::uint32_t expert = warp_smallest(best == winner ? index : ~0u);
    const float chosen = __shfl_sync(kAllLanes, best_score, static_cast<int>(expert % kWarp));
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      if (static_cast<std::uint32_t>(i * kWarp + lane) == expert) keys[i] = 0;
    }
    sum += chosen;
    if (lane == j) {
      own_expert = static_cast<int>(expert);
      own_score = chosen;
    }
  }
  if (lane < p.top_k) {
    const float divisor = p.normalize ? sum + 1e-20f : 1.0f;
    p.selected[r * p.top_k + lane] = own_expert;
    p.weights[r * p.top_k + lane] = own_score / divisor * p.scaling_factor;
  }
  return own_expert;
}

// A block routes rows [first, last), at least one, row r by logits_of(r), and adds their pairs per expert to `counts`
// in shared memory.
template <int kSlots, class Logits>
__device__ __forceinline__ void route_rows(const RouterParams& p, std::int64_t first, std::int64_t last, int* counts,
                                           const Logits& logits_of) {
  LaneExperts<kSlots> bias;
  bias.load(p.bias, p.experts, 0.0f);
  for (std::int64_t r = first + warp_index(); r < last; r += static_cast<int>(blockDim.x) / kWarp) {
    const int expert = route_row(p, bias, r, logits_of(r));
    if (expert >= 0) atomicAdd(&counts[expert], 1);
  }
  __syncthreads();
}

template <int kSlots>
__device__ __forceinline__ void route_rows(const RouterParams& p, std::int64_t first, std::int64_t last, int* counts) {
  route_rows<kSlots>(p, first, last, counts, [&](std::int64_t r) { return p.logits + r * p.logits_stride; });
}

// A block of kPlaceThreads adds up the counts of all chunks, and of those before `chunk`.
__device__ __forceinline__ void sum_counts(const RouterParams& p, int chunks, int chunk, const PlaceShared& shared) {
  int width = kWarp;
  while (width < p.experts && width < kPlaceThreads) width *= 2;
  const int parts = kPlaceThreads / width;
  const int part = static_cast<int>(threadIdx.x) / width;
  for (int e = static_cast<int>(threadIdx.x) % width; e < p.experts; e += width) {
    int total = 0;
    int before = 0;
#pragma unroll 8
    for (int c = part; c < chunks; c += parts) {
      const int pairs = p.counts[c * p.experts + e];
      total += pairs;
      before += c < chunk ? pairs : 0;
    }
    atomicAdd(&shared.totals[e], total);
    atomicAdd(&shared.before[e], before);
  }
  __syncthreads();
}

// A warp turns totals into offsets.
__device__ __forceinline__ void scan_offsets(const RouterParams& p, const PlaceShared& shared) {
  const int lane = lane_index();
  int carry = 0;
  for (int first = 0; first < p.experts; first += kWarp) {
    const int e = first + lane;
    const int padded = e < p.experts ? (shared.totals[e] + p.alignment - 1) / p.alignment * p.alignment : 0;
    int end = padded;
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      const int other = __shfl_up_sync(kAllLanes, end, step);
      if (lane >= step) end += other;
    }
    if (e < p.experts) shared.starts[e] = carry + end - padded;
    carry += __shfl_sync(kAllLanes, end, kWarp - 1);
  }
  if (lane == 0) shared.starts[p.experts] = carry;
}

// The pairs of a chunk, dealt to kPlaceWarps warps in consecutive runs.
struct WarpPairs {
  int begin;
  int end;

  __device__ __forceinline__ WarpPairs(int pairs, int warp) {
    const int run = (pairs + kPlaceThreads - 1) / kPlaceThreads * kWarp;
    begin = min(warp * run, pairs);
    end = min(begin + run, pairs);
  }

  // Calls f(pair, expert, lanes) in turns of 32 pairs: `lanes` have the same expert. All lanes take part in a turn;
  // those without a pair get expert -1.
  template <class F>
  __device__ __forceinline__ void each(const std::int32_t* selected, F f) const {
    for (int first = begin; first < end; first += kWarp) {
      const int pair = first + lane_index();
      const int expert = pair < end ? selected[pair] : -1;
      f(pair, expert, __match_any_sync(kAllLanes, expert));
    }
  }
};

// Places the pairs of rows [first, last), which are chunk `chunk` of `chunks`, and writes the chunk's share of the
// padding. `totals` and `before` are complete, `cursor` is cleared, and a barrier has been passed since.
__device__ __forceinline__ void place_pairs(const RouterParams& p, int chunks, int chunk, std::int64_t first,
                                            std::int64_t last, const PlaceShared& shared) {
  const int lane = lane_index();
  const int warp = warp_index();
  const unsigned lanes_before = (1u << lane) - 1;
  const std::int32_t* const selected = p.selected + first * p.top_k;
  int* const cursor = shared.cursor + warp * p.experts;
  const WarpPairs run(static_cast<int>(last - first) * p.top_k, warp);

  if (warp < kPlaceWarps) {
    run.each(selected, [&](int, int expert, unsigned lanes) {
      if (expert >= 0 && (lanes & lanes_before) == 0) cursor[expert] += __popc(lanes);
      __syncwarp();
    });
  }
  if (warp == 0) scan_offsets(p, shared);
  __syncthreads();

  for (int e = static_cast<int>(threadIdx.x); e < p.experts; e += static_cast<int>(blockDim.x)) {
    int next = shared.starts[e] + shared.before[e];
    for (int w = 0; w < kPlaceWarps; ++w) {
      int& of_warp = shared.cursor[w * p.experts + e];
      const int pairs = of_warp;
      of_warp = next;
      next += pairs;
    }
  }
  __syncthreads();

  if (warp < kPlaceWarps) {
    run.each(selected, [&](int pair, int expert, unsigned lanes) {
      if (expert >= 0) {
        const int slot = cursor[expert] + __popc(lanes & lanes_before);
        p.slots[first * p.top_k + pair] = slot;
        p.sources[slot] = static_cast<std::int32_t>(first) + pair / p.top_k;
      }
      __syncwarp();
      if (expert >= 0 && (lanes & lanes_before) == 0) cursor[expert] += __popc(lanes);
      __syncwarp();
    });
  }
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  for (int e = chunk * warps + warp; e < p.experts; e += chunks * warps) {
    for (int i = shared.starts[e] + shared.totals[e] + lane; i < shared.starts[e + 1]; i += kWarp) p.sources[i] = -1;
  }
  if (chunk > 0) return;
  for (int e = static_cast<int>(threadIdx.x); e <= p.experts; e += static_cast<int>(blockDim.x)) {
    p.offsets[e] = shared.starts[e];
  }
}

__device__ __forceinline__ void clear_shared(int* shared, int count) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) shared[i] = 0;
  __syncthreads();
}

// First of two kernels: block c routes the rows of chunk c and leaves its counts. Shared memory: experts ints.
template <int kSlots>
__global__ void __launch_bounds__(kRouteThreads) route_chunks_kernel(RouterParams p) {
  overlap_with_neighbours();
  const std::int64_t rows = live_rows(p);
  const int chunk = static_cast<int>(blockIdx.x);
  const std::int64_t first = static_cast<std::int64_t>(chunk) * p.chunk_rows;
  if (first >= rows) return;
  int* const counts = dynamic_shared<int>();
  clear_shared(counts, p.experts);
  route_rows<kSlots>(p, first, min(first + p.chunk_rows, rows), counts);
  for (int e = static_cast<int>(threadIdx.x); e < p.experts; e += static_cast<int>(blockDim.x)) {
    p.counts[chunk * p.experts + e] = counts[e];
  }
}

// Second: block c places the pairs of chunk c. Shared memory: place_shared_ints.
static __global__ void __launch_bounds__(kPlaceThreads) place_chunks_kernel(RouterParams p) {
  overlap_with_neighbours();
  const std::int64_t rows = live_rows(p);
  const int chunks = rows == 0 ? 1 : static_cast<int>((rows + p.chunk_rows - 1) / p.chunk_rows);
  const int chunk = static_cast<int>(blockIdx.x);
  if (chunk >= chunks) return;
  int* const memory = dynamic_shared<int>();
  const PlaceShared shared(memory, p.experts);
  clear_shared(memory, place_shared_ints(p.experts));
  if (rows > 0) sum_counts(p, chunks, chunk, shared);
  const std::int64_t first = static_cast<std::int64_t>(chunk) * p.chunk_rows;
  place_pairs(p, chunks, chunk, first, min(first + p.chunk_rows, rows), shared);
}

// Both in one block, for few rows. Shared memory: place_shared_ints.
template <int kSlots>
__global__ void __launch_bounds__(kRouteSmallThreads) route_small_kernel(RouterParams p) {
  overlap_with_neighbours();
  const std::int64_t rows = live_rows(p);
  int* const memory = dynamic_shared<int>();
  const PlaceShared shared(memory, p.experts);
  clear_shared(memory, place_shared_ints(p.experts));
  if (rows > 0) route_rows<kSlots>(p, 0, rows, shared.totals);
  place_pairs(p, 1, 0, 0, rows, shared);
}

}  // namespace onerec::cuda::kernels
