// How row kernels share rows out: a team of threads holds a row, or a part of one, in its registers.
#pragma once

#include "backends/cuda/kernels/block.cuh"

namespace onerec::cuda::kernels {

// Threads of a row kernel that a multiprocessor holds at a time: with 64 registers each. Their launch bounds see to it
// for all but the widest rows, and their grids have no more blocks than that, so that all blocks end together.
inline constexpr int kResidentThreads = 1024;

// The vectors (see numeric.cuh) of a row, split into `parts` of `part_vectors` each; the last part may be shorter.
// A team of `members` threads holds a part: member m its vectors m, m + members, m + 2 * members, ...
struct RowParts {
  std::int64_t rows = 0;                // capacity
  const std::int32_t* count = nullptr;  // live rows; null: all
  std::int32_t vectors = 0;
  std::int32_t part_vectors = 0;
  std::uint32_t parts = 1;
};

// A team has one object in each of its threads; all of them call its collectives in the same order.
//
// Threads of a team that is a part of a warp; blocks hold several teams.
template <int kLanes>
struct LaneTeam {
  static constexpr int kMaxThreads = 256;
  static constexpr int kScaleLanes = kLanes;
  __device__ static __forceinline__ int teams() { return static_cast<int>(blockDim.x) / kLanes; }
  __device__ static __forceinline__ int index() { return static_cast<int>(threadIdx.x) / kLanes; }
  __device__ static __forceinline__ int member() { return static_cast<int>(threadIdx.x) % kLanes; }
  __device__ static __forceinline__ int members() { return kLanes; }
  __device__ static __forceinline__ float sum(float value) { return warp_sum<kLanes>(value); }
  __device__ static __forceinline__ float max_magnitude(float value) { return warp_max<kLanes>(value); }
};

// A warp, each lane of which holds several vectors of a row: no barriers, and what every thread of a row has to do
// besides its vectors is done 32 times a row.
struct WarpTeam : LaneTeam<kWarp> {
  static constexpr int kResidentBlocks = 2;  // of kMaxThreads: with 128 registers each

  // A sum over the row whose bits do not show that a warp took it: sums[w] is of what warp w would hold of a block
  // whose threads have two vectors each.
  template <int kSums>
  __device__ static __forceinline__ float sum_as_block(const float (&sums)[kSums]) {
    static_assert(kSums <= 4, "a warp's row");
    constexpr int kCount = kSums <= 2 ? kSums : 4;
    float padded[kCount] = {};
#pragma unroll
    for (int w = 0; w < kSums; ++w) padded[w] = sums[w];
    const float scattered = scattered_warp_sum<kCount>(padded);
    float total = __shfl_sync(kAllLanes, scattered, 0);
#pragma unroll
    for (int w = 1; w < kSums; ++w) total += __shfl_sync(kAllLanes, scattered, w * (kWarp / kCount));
    return total;
  }
};

// A whole block of at most kThreads.
template <int kThreads>
class BlockTeam {
 public:
  static constexpr int kMaxThreads = kThreads;
  static constexpr int kScaleLanes = kWarp;
  __device__ static __forceinline__ int teams() { return 1; }
  __device__ static __forceinline__ int index() { return 0; }
  __device__ static __forceinline__ int member() { return static_cast<int>(threadIdx.x); }
  __device__ static __forceinline__ int members() { return static_cast<int>(blockDim.x); }
  __device__ __forceinline__ float sum(float value) {
    return over_warps(warp_sum(value), [](float a, float b) { return a + b; });
  }
  __device__ __forceinline__ float max_magnitude(float value) {
    return over_warps(warp_max(value), [](float a, float b) { return max_or_nan(a, b); });
  }

 private:
  // One barrier: two calls in a row use different arrays, and the third comes behind the second's barrier.
  template <class Combine>
  __device__ __forceinline__ float over_warps(float value, Combine combine) {
    constexpr int kWarps = kThreads / kWarp;
    __shared__ float parts[2][kWarps];
    const int warps = static_cast<int>(blockDim.x) / kWarp;
    if (warps == 1) return value;
    float* const now = parts[turn_];
    turn_ ^= 1;
    if (lane_index() == 0) now[warp_index()] = value;
    __syncthreads();
    value = now[0];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) {
      if (w < warps) value = combine(value, now[w]);
    }
    return value;
  }

  int turn_ = 0;
};

// Blocks of Team::kMaxThreads, whose threads hold kVectors vectors each, that share a multiprocessor.
template <class Team>
constexpr int resident_row_blocks(int vectors) {
  if constexpr (std::is_same_v<Team, WarpTeam>) return Team::kResidentBlocks;
  return vectors > 2 ? 1 : kResidentThreads / Team::kMaxThreads;
}

// The part of a row that a team is at.
struct RowPart {
  std::int64_t row = 0;
  std::int32_t part = 0;
  std::int32_t first = 0;  // vector of the row
  std::int32_t end = 0;    // behind the last one; 0 for a team that has nothing to do
};

__device__ __forceinline__ RowPart row_part(const RowParts& rows, std::int64_t index, std::int64_t limit) {
  if (index >= limit) return {};
  RowPart at;
  if (rows.parts == 1) {
    at.row = index;
  } else {
    const auto flat = static_cast<std::uint32_t>(index);
    at.row = flat / rows.parts;
    at.part = static_cast<std::int32_t>(flat % rows.parts);
  }
  at.first = at.part * rows.part_vectors;
  at.end = min(at.first + rows.part_vectors, rows.vectors);
  return at;
}

// The i-th vector of this thread. None if it is not below at.end.
template <class Team>
__device__ __forceinline__ int row_vector(const RowPart& at, int i) {
  return at.first + Team::member() + i * Team::members();
}

// Whether there is one, of the kVectors that a thread holds. A warp whose lanes hold that many of a row has all but the
// last ones for certain, if it has a row.
template <class Team, int kVectors>
__device__ __forceinline__ bool has_vector(const RowPart& at, int i) {
  if (std::is_same_v<Team, WarpTeam> && i + 1 < kVectors) return true;
  return row_vector<Team>(at, i) < at.end;
}

// That vector of the row at `row`; 0 where there is none.
template <class T, class Team>
__device__ __forceinline__ uint4 load_row_vector(const T* row, const RowPart& at, int i) {
  const int vector = row_vector<Team>(at, i);
  return vector < at.end ? load_vector(row + static_cast<std::int64_t>(vector) * kVector<T>) : make_uint4(0, 0, 0, 0);
}

template <int kVectors>
struct RowVectors {
  uint4 vector[kVectors];
};

// All of the thread's vectors.
template <class T, class Team, int kVectors>
__device__ __forceinline__ RowVectors<kVectors> load_row_vectors(const T* row, const RowPart& at) {
  RowVectors<kVectors> held = {};
  if (at.end == 0) return held;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (!has_vector<Team, kVectors>(at, i)) continue;
    held.vector[i] = load_vector(row + static_cast<std::int64_t>(row_vector<Team>(at, i)) * kVector<T>);
  }
  return held;
}

// What a block loads of its next parts while it is at the present ones: nothing, or all of it, for twice the registers.
enum class Ahead : std::uint8_t { kNothing, kNextPart };

// for_row_parts() of warps that have rows to themselves, from the last row to the first: what the kernel before this
// one wrote last is still in L2.
template <class Load, class Process, class Prepare>
__device__ __forceinline__ void for_warp_rows(const RowParts& rows, const Load& load, const Process& process,
                                              const Prepare& prepare) {
  const std::int64_t turn = static_cast<std::int64_t>(gridDim.x) * WarpTeam::teams();
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * WarpTeam::teams() + WarpTeam::index();
  const auto part_of = [&](std::int64_t row, std::int64_t limit) {
    return row < 0 ? RowPart{} : row_part(rows, row, limit);
  };
  std::int64_t row = rows.rows - 1 - first;
  RowPart at = part_of(row, rows.rows);
  auto held = load(at);
  prepare();
  const std::int64_t live = rows.count == nullptr ? rows.rows : *rows.count;
  for (; row >= 0; row -= turn) {
    const RowPart next = part_of(row - turn, live);
    const auto next_held = load(next);
    if (at.end > 0 && row < live) process(at, held);
    at = next;
    held = next_held;
  }
}

// Calls process(at, load(at)) for every part of every live row: `load` reads what a thread holds of it, `process` may
// use the team's collectives, and must not write what `load` reads of another part. The first parts are loaded even
// where the rows turn out not to be live; `prepare()` comes behind these loads, in every thread.
template <class Team, Ahead kAhead = Ahead::kNextPart, class Load, class Process, class Prepare>
__device__ __forceinline__ void for_row_parts(const RowParts& rows, const Load& load, const Process& process,
                                              const Prepare& prepare) {
  if constexpr (std::is_same_v<Team, WarpTeam>) return for_warp_rows(rows, load, process, prepare);
  const std::int64_t turn = static_cast<std::int64_t>(gridDim.x) * Team::teams();
  std::int64_t base = static_cast<std::int64_t>(blockIdx.x) * Team::teams();
  RowPart at = row_part(rows, base + Team::index(), rows.rows * rows.parts);
  auto held = load(at);
  prepare();
  const std::int64_t live = (rows.count == nullptr ? rows.rows : *rows.count) * static_cast<std::int64_t>(rows.parts);
  if (base + Team::index() >= live) at.end = 0;
  // As a rule there is no next part, and working one out for nobody takes longer than the branches.
  while (base < live) {  // the same for all threads of the block
    base += turn;
    if constexpr (kAhead == Ahead::kNextPart) {
      RowPart next;
      auto next_held = held;
      if (base < live) {
        next = row_part(rows, base + Team::index(), live);
        next_held = load(next);
      }
      process(at, held);
      at = next;
      held = next_held;
    } else {
      process(at, held);
      if (base >= live) return;
      at = row_part(rows, base + Team::index(), live);
      held = load(at);
    }
  }
}

template <class Team, Ahead kAhead = Ahead::kNextPart, class Load, class Process>
__device__ __forceinline__ void for_row_parts(const RowParts& rows, const Load& load, const Process& process) {
  for_row_parts<Team, kAhead>(rows, load, process, [] {});
}

}  // namespace onerec::cuda::kernels
