// Index arithmetic of the tensor-core cross-attention: where things lie in shared memory and in registers, and which
// part of the work is whose. Plain constexpr functions, so that the host can test them.
#pragma once

#include <cstdint>

namespace onerec::cuda::kernels {

// A warpgroup multiplies 64 query rows.
inline constexpr int kWarpgroup = 128;
inline constexpr int kWarpgroupRows = 64;

// --- shared memory ---

// A tile [rows, head_dim] of BF16 lies as head_dim / 64 panels of [rows, 64 columns], one behind the other; the eight
// 16-byte chunks of a row's 128 bytes are permuted by the row (the tensor copy engine's 128-byte swizzle). A tile
// starts at a multiple of 1024 bytes.
inline constexpr int kPanelColumns = 64;
inline constexpr int kPanelRowBytes = 128;
inline constexpr int kChunkBytes = 16;
inline constexpr int kChunkColumns = 8;
inline constexpr int kPanelChunks = kPanelColumns / kChunkColumns;

// Byte offset of columns [8 * chunk, 8 * chunk + 8) of `row` in a tile of `rows` rows.
constexpr int chunk_offset(int rows, int row, int chunk) {
  const int panel = chunk / kPanelChunks;
  const int place = (chunk ^ row) % kPanelChunks;
  return (panel * rows + row) * kPanelRowBytes + place * kChunkBytes;
}

// --- registers ---

// Accumulator `element` of `thread` of a warpgroup is this row and column of the 64-row product. Consecutive groups of
// eight elements are, in the same order, what the thread holds of a 64 x 16 left-hand side.
constexpr int accumulator_row(int thread, int element) {
  return thread / 32 * 16 + thread % 32 / 4 + element / 2 % 2 * 8;
}

constexpr int accumulator_column(int thread, int element) { return element / 4 * 8 + thread % 4 * 2 + element % 2; }

// Which of its two rows an element belongs to.
constexpr int row_half(int element) { return element / 2 % 2; }

// --- a ring of stages in shared memory ---

// The use number `use` (from 0) of a ring takes this stage; its barriers complete the phase of this parity.
constexpr int ring_stage(int use, int stages) { return use % stages; }
constexpr std::uint32_t ring_parity(int use, int stages) { return static_cast<std::uint32_t>(use / stages % 2); }

// --- work ---

// Query `index` of a request and group: head index % group_heads of the group, row index / group_heads of the request.
struct AttentionQuery {
  std::int64_t row;  // of q and out
  int head;
};

constexpr AttentionQuery query_at(std::int64_t first_row, int group, int group_heads, int index) {
  return {first_row + index / group_heads, group * group_heads + index % group_heads};
}

struct TileRange {
  int begin;
  int end;
};

// The context tiles of one split of a request that has `tiles` of them.
constexpr TileRange split_tiles(int tiles, int splits, int split) {
  return {static_cast<int>(static_cast<std::int64_t>(tiles) * split / splits),
          static_cast<int>(static_cast<std::int64_t>(tiles) * (split + 1) / splits)};
}

// Into how many parts to cut the context: 1 where `blocks` blocks fill the device or the context has few tiles, else
// the smallest number that comes close to the best use of the multiprocessors.
constexpr int choose_splits(std::int64_t blocks, std::int64_t tiles, int multiprocessors) {
  constexpr std::int64_t kFewTiles = 4;
  constexpr int kMostSplits = 16;
  if (blocks <= 0 || tiles <= kFewTiles || blocks * 10 >= static_cast<std::int64_t>(multiprocessors) * 8) return 1;
  // Work per multiprocessor and wave, in tiles; one more for the start and the end of a block.
  const auto cost = [&](int splits) {
    const std::int64_t waves = (blocks * splits + multiprocessors - 1) / multiprocessors;
    return waves * ((tiles + splits - 1) / splits + 1);
  };
  std::int64_t best = cost(1);
  for (int splits = 2; splits <= kMostSplits && splits <= tiles; ++splits)
    best = cost(splits) < best ? cost(splits) : best;
  for (int splits = 1; splits <= kMostSplits && splits <= tiles; ++splits) {
    if (cost(splits) * 100 <= best * 115) return splits;
  }
  return 1;
}

}  // namespace onerec::cuda::kernels
