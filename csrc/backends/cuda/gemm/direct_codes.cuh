// E4M3 codes of the direct kernel's result: made by warps that do not multiply, while later tiles are multiplied, and
// in the end by all.
//
// A scale needs a whole row. The multiplying warps raise their rows' largest magnitudes. That they have stored a tile
// the loading thread knows from what they release next, without a word of theirs; a warp tells the other blocks, so
// that nobody else waits until the stores can be seen. Rows are taken in order, a few at a time, by whichever warp is
// free. It waits until they are complete.
//
// A warp waits for other blocks only once all have begun: those that wait may take the room that the others need. If
// some are missing when a block has nothing left to multiply, its warps leave; the last one to begin finds all, and
// codes what nobody has taken.
#pragma once

#include "backends/cuda/gemm/direct_ring.cuh"
#include "backends/cuda/gemm/shared_words.cuh"
#include "backends/cuda/kernels/row_quantize.cuh"

namespace onerec::cuda::kernels {

// Makes the words of a DirectProgress 0, ahead of the kernel that counts with them. A memset between two kernels of a
// graph would let neither start early.
template <int kThreads>
__global__ void __launch_bounds__(kThreads) clear_progress(std::uint32_t* words, std::int64_t count) {
  overlap_with_neighbours();
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < count) words[i] = 0;
}

inline constexpr int kCodingWarps = 2;    // of a block while it multiplies, 1 or 2
inline constexpr int kCodingAhead = 6;    // vectors of a row that a lane of theirs reads at a time
inline constexpr int kHelpingAhead = 14;  // the same of a multiplying warp that helps in the end
inline constexpr int kRowsTaken = 4;      // at a time
inline constexpr int kReportPause = 100;  // nanoseconds between looks
inline constexpr int kCodingPause = 300;

// A warp that makes codes.
template <int kAhead>
class DirectCoder {
 public:
  __device__ __forceinline__ DirectCoder(const DirectParams& p, int live_rows)
      : p_(p), progress_(p.rows), live_rows_(live_rows), vectors_(p.columns / kVector<bf16>) {}

  __device__ __forceinline__ bool all_begun() const {
    const std::uint32_t begun = read_shared_by_blocks(p_.codes.progress + DirectProgress::begun());
    return __all_sync(kAllLanes, begun == gridDim.x * kCodingWarps);
  }

  // Until all rows are taken. `tiles`: of a row.
  __device__ __forceinline__ void run(int tiles) const {
    static_assert(DirectProgress::kRows % kRowsTaken == 0, "rows taken at a time are complete at a time");
    for (;;) {
      const int first = take();
      if (first >= live_rows_) return;
      wait_for_tiles(first, static_cast<std::uint32_t>(tiles));
      code_group(first, min(kRowsTaken, live_rows_ - first));
    }
  }

 private:
  __device__ __forceinline__ int take() const {
    std::uint32_t group = 0;
    if (lane_index() == 0) group = take_shared_by_blocks(p_.codes.progress + DirectProgress::taken());
    return static_cast<int>(__shfl_sync(kAllLanes, group, 0)) * kRowsTaken;
  }

  __device__ __forceinline__ void wait_for_tiles(int row, std::uint32_t tiles) const {
    const std::uint32_t* const stored = p_.codes.progress + progress_.stored(row);
    while (!__all_sync(kAllLanes, read_shared_by_blocks(stored) == tiles)) __nanosleep(kCodingPause);
    static_cast<void>(read_published(stored));
    __syncwarp();
  }

  __device__ __forceinline__ void code_group(int first, int rows) const {
    // A lane has the scale of a row.
    float scale = 0.0f;
    float inverse = 0.0f;
    if (const int row = first + lane_index(); lane_index() < rows) {
      const auto largest = bits_as<float>(read_shared_by_blocks(p_.codes.progress + progress_.largest(row)));
      scale = e4m3_scale(max_or_nan(largest, largest));  // the same NaN for all of them
      inverse = e4m3_inverse(scale);
      p_.codes.scales[row] = scale;
    }
    __syncwarp();
    for (int i = 0; i < rows; ++i) code_row(first + i, __shfl_sync(kAllLanes, inverse, i));
  }

  __device__ __forceinline__ void code_row(int row, float inverse) const {
    constexpr int kElements = kVector<bf16>;
    const bf16* from = p_.y + row * p_.y_stride + lane_index() * kElements;
    std::uint8_t* to = p_.codes.codes + row * p_.codes.stride + lane_index() * kElements;
    for (int left = vectors_ - lane_index(); left > 0; left -= kAhead * kWarp) {
      uint4 held[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        held[i] = make_uint4(0, 0, 0, 0);
        if (i * kWarp < left) held[i] = read_of_blocks(from + i * kWarp * kElements);
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        float values[kElements];
        unpack<bf16>(held[i], values);
        if (i * kWarp < left) store_codes(to + i * kWarp * kElements, values, inverse);
      }
      from += kAhead * kWarp * kElements;
      to += kAhead * kWarp * kElements;
    }
  }

  const DirectParams& p_;
  DirectProgress progress_;
  int live_rows_;
  int vectors_;  // of a row
};

// Of a block's `tiles` tiles, in the order of its walk: how many are known to be stored.
template <class Tile>
__device__ __forceinline__ int stored_tiles(const DirectShared<Tile>& shared, int tiles) {
  const std::uint32_t finished = read_in_block(shared.finished + lane_index() % Tile::kMultiplierWarps);
  const int stored = __all_sync(kAllLanes, finished != 0) ? tiles : static_cast<int>(read_in_block(shared.stored));
  __syncwarp();
  return stored;
}

template <class Tile>
__device__ __forceinline__ int tile_columns(const DirectParams& p) {
  return (p.columns + Tile::kColumns - 1) / Tile::kColumns;
}

// A warp: tells the other blocks of this one's tiles.
template <class Tile>
__device__ __forceinline__ void report_tiles(const DirectParams& p, const DirectShared<Tile>& shared) {
  wait_for_previous_kernel();
  DirectWalk<Tile> walk(p);
  const int live_rows = live_rows_of(p);
  const DirectProgress progress(p.rows);
  walk.start(live_rows);
  const int tiles = walk.left();
  for (int tile = 0; tile < tiles; ++tile, walk.next()) {
    while (stored_tiles(shared, tiles) <= tile) __nanosleep(kReportPause);
    const int row = walk.first_row();
    if (lane_index() == 0 && row < live_rows) add_publishing(p.codes.progress + progress.stored(row), 1);
  }
}

// Each of kCodingWarps warps.
template <class Tile>
__device__ __forceinline__ void code_rows(const DirectParams& p, const DirectShared<Tile>& shared) {
  wait_for_previous_kernel();
  DirectWalk<Tile> walk(p);
  const int live_rows = live_rows_of(p);
  walk.start(live_rows);
  const int tiles = walk.left();
  const DirectCoder<kCodingAhead> coder(p, live_rows);
  if (lane_index() == 0) add_shared_by_blocks(p.codes.progress + DirectProgress::begun(), 1);
  __syncwarp();
  while (!coder.all_begun()) {
    if (stored_tiles(shared, tiles) == tiles) return;
    __nanosleep(kCodingPause);
  }
  coder.run(tile_columns<Tile>(p));
}

// A multiplying warp that has nothing left to multiply.
template <class Tile>
__device__ __forceinline__ void help_to_code(const DirectParams& p, const DirectShared<Tile>& shared) {
  __syncwarp();
  if (lane_index() == 0) publish_in_block(shared.finished + warp_index(), 1);
  const DirectCoder<kHelpingAhead> coder(p, live_rows_of(p));
  if (coder.all_begun()) coder.run(tile_columns<Tile>(p));
}

}  // namespace onerec::cuda::kernels
