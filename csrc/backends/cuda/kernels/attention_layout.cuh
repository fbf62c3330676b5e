// Index arithmetic of the tensor-core cross-attention: where things lie in shared memory and in registers, and which
// part of the work is whose. Plain constexpr functions, so that the host can test them.
#pragma once

#include <cstdint>

namespace onerec::cuda::kernels {

enum class ContextTensors { kShared, kSeparate };  // keys are the values, or not

// A warpgroup multiplies 64 query rows; a block has two that multiply.
inline constexpr int kWarpgroup = 128;
inline constexpr int kWarpgroupRows = 64;
inline constexpr int kFlashWarpgroups = 2;

// Tokens of a context tile: a multiple of 16, at most 256. Keys that are the values as well leave room for more.
inline constexpr int kUsualTileTokens = 128;
inline constexpr int kSharedTileTokens = 128;  // of keys that are the values, in heads of 128
constexpr int tokens_of_tile(int head_dim, bool shared_context) {
  return shared_context && head_dim == 128 ? kSharedTileTokens : kUsualTileTokens;
}

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

// From the byte offset of something in chunk 0 of a row to the same place in another chunk of that row.
constexpr int move_to_chunk(int rows, int offset, int chunk) {
  return (offset ^ chunk % kPanelChunks * kChunkBytes) + chunk / kPanelChunks * rows * kPanelRowBytes;
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
constexpr int ring_stage(int use, int stages) {
  return static_cast<int>(static_cast<std::uint32_t>(use) % static_cast<std::uint32_t>(stages));
}
constexpr std::uint32_t ring_parity(int use, int stages) {
  return static_cast<std::uint32_t>(use) / static_cast<std::uint32_t>(stages) % 2u;
}

// --- work ---

// Query `index` of a request and group: head index % group_heads of the group, row index / group_heads of the request.
struct AttentionQuery {
  std::int64_t row;  // of q and out
  int head;
};

constexpr AttentionQuery query_at(std::int64_t first_row, int group, int group_heads, int index) {
  return {first_row + index / group_heads, group * group_heads + index % group_heads};
}

// The 64 query rows of a warpgroup are all of a group's heads, at most 64, of this many rows of a request. Those that
// are left over stay unused.
constexpr int rows_of_warpgroup(int group_heads) { return kWarpgroupRows / group_heads; }

// index / divisor for an index below 64 and a divisor of 1 to 64, without a division on the device.
constexpr std::uint32_t small_reciprocal(int divisor) { return 0x10000u / static_cast<std::uint32_t>(divisor) + 1u; }
constexpr int divide_small(int index, std::uint32_t reciprocal) {
  return static_cast<int>(static_cast<std::uint32_t>(index) * reciprocal >> 16);
}

struct TileRange {
  int begin;
  int end;
};

inline constexpr int kMostSplits = 16;

// The context tiles of one split of a request that has `tiles` of them, fewer than 2^26.
constexpr TileRange split_tiles(int tiles, int splits, int split) {
  return {tiles * split / splits, tiles * (split + 1) / splits};
}

// Contexts of so few tiles are not split.
inline constexpr std::int64_t kFewTiles = 4;

// How many warpgroups of a block have rows: both, or one where all rows of one each, `blocks` blocks, still find room
// side by side and the context is not going to be split instead.
constexpr int choose_warpgroups(std::int64_t blocks, std::int64_t tiles, int multiprocessors) {
  return tiles <= kFewTiles && blocks <= multiprocessors ? 1 : kFlashWarpgroups;
}

// Into how many parts to cut the context: 1 where `blocks` blocks fill the device or the context has few tiles, else
// the smallest number that comes close to the best use of the multiprocessors.
constexpr int choose_splits(std::int64_t blocks, std::int64_t tiles, int multiprocessors) {
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

// All the work, by capacity, cut into items: a tile of rows of a request, a group, and a split of the context. Items
// with the same keys follow each other, so that blocks that run side by side read them together; or, paired, those with
// the same queries, which are the two splits of their context.
struct AttentionSchedule {
  int requests = 0;
  int groups = 0;
  int splits = 1;
  bool paired = false;     // with two splits, and a block for every item
  int row_tiles = 0;       // of a request
  int warpgroup_rows = 0;  // rows of a request that a warpgroup takes
  int tile_rows = 0;       // rows of a request in a tile: those of both warpgroups, or of the first alone
  int tile_tokens = 0;
  int items = 0;
};

inline constexpr std::int64_t kMostAttentionItems = std::int64_t{1} << 30;

// What a block is to do. Without live rows it is nothing; without tiles there are rows but no context for them.
struct alignas(16) AttentionItem {
  int first_row = 0;  // of q and out
  int rows = 0;       // live ones
  int group = 0;
  int split = 0;
  int tiles = 0;        // of the context, walked from the last to the first: the one with an end comes first
  int last_token = 0;   // with which the last tile begins
  int last_tokens = 0;  // of the request in the last tile
  int all_tiles = 0;    // of the request, in all splits
};

constexpr AttentionItem item_at(const AttentionSchedule& schedule, int index, const std::int32_t* row_offsets,
                                const std::int32_t* context_offsets) {
  const int near = schedule.paired ? schedule.splits : schedule.row_tiles;
  const int nearest = index % near;
  index /= near;
  const int far = schedule.paired ? schedule.row_tiles : schedule.splits;
  const int next = index % far;
  index /= far;
  const int row_tile = schedule.paired ? next : nearest;
  const int split = schedule.paired ? nearest : next;
  const int request = index / schedule.groups;
  const int tokens_begin = context_offsets[request];
  const int tokens = context_offsets[request + 1] - tokens_begin;
  const int rows_begin = row_offsets[request];
  const int rows = row_offsets[request + 1] - rows_begin - row_tile * schedule.tile_rows;
  const int all_tiles = (tokens + schedule.tile_tokens - 1) / schedule.tile_tokens;
  const TileRange tiles = split_tiles(all_tiles, schedule.splits, split);
  const int last = (tiles.end - 1) * schedule.tile_tokens;

  AttentionItem item;
  item.first_row = rows_begin + row_tile * schedule.tile_rows;
  item.rows = rows < 0 ? 0 : rows < schedule.tile_rows ? rows : schedule.tile_rows;
  item.group = index % schedule.groups;
  item.split = split;
  item.tiles = tiles.end - tiles.begin;
  item.last_token = tokens_begin + last;
  item.last_tokens = tokens - last < schedule.tile_tokens ? tokens - last : schedule.tile_tokens;
  item.all_tiles = all_tiles;
  return item;
}

// How many of an item's rows a warpgroup has; its first one is its index times `warpgroup_rows`.
constexpr int live_rows(const AttentionItem& item, int warpgroup, int warpgroup_rows) {
  const int rows = item.rows - warpgroup * warpgroup_rows;
  return rows < 0 ? 0 : rows < warpgroup_rows ? rows : warpgroup_rows;
}

// A block does the items blockIdx, blockIdx + gridDim, ... . Those with live rows are numbered from 0 on; number n is
// described, and has its queries, in slot n % 2.
inline constexpr int kItemSlots = 2;

// --- pairs ---

// Paired, a block has one item, and the blocks of the two splits of the same queries are a pair, each in it the number
// of its split. Every block finishes the queries of one warpgroup: the one with its number in the pair. The other
// block's warpgroup of these queries sends its sums, thread by thread, in units of four: those of two columns of two
// rows; then, as one more unit, what the sums are relative to. They come to where queries of a second item would be.
inline constexpr int kUnitSums = 4;
inline constexpr int kUnitBytes = kWarpgroup * kUnitSums * 4;
constexpr bool finishes(const AttentionItem& item, int warpgroup) { return item.split == warpgroup; }

}  // namespace onerec::cuda::kernels
