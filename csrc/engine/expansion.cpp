#include "engine/expansion.h"

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>

#include "core/error.h"

namespace onerec {
namespace {

bool is_alive(const RunBeams& beams, std::int64_t row) {
  return beams.leaves[row] >= 0 && beams.scores[row] > -std::numeric_limits<float>::infinity();
}

PositionRange positions_of(const RunBeams& beams, std::int64_t request, std::int64_t row, const ItemIndex& index) {
  if (beams.constrained[request] == 0) return index.with_codes(beams.codes + row * index.levels);
  const std::int64_t leaf = beams.leaves[row];
  ensure(leaf < index.leaves, "beam ", row, " ends in leaf ", leaf, " of ", index.leaves);
  return index.leaf(leaf);
}

// Some live beams of a request. An item is three look-ups away from its beam, each at a random place: done block by
// block and one kind after the other, those of several beams wait for memory side by side.
struct Block {
  static constexpr std::int64_t kMost = 64;

  std::int64_t count = 0;
  std::array<std::int64_t, kMost> rows;
  std::array<PositionRange, kMost> ranges;
};

// Takes the next live beams from `row` on, at most `most`, and returns the row behind them.
std::int64_t fill(Block& block, const RunBeams& beams, std::int64_t request, std::int64_t row, std::int64_t most,
                  const ItemIndex& index) {
  block.count = 0;
  for (; row < beams.offsets[request + 1] && block.count < std::min(most, Block::kMost); ++row) {
    if (!is_alive(beams, row)) continue;
    const auto i = static_cast<std::size_t>(block.count++);
    block.rows[i] = row;
    block.ranges[i] = positions_of(beams, request, row, index);
  }
  for (std::int64_t i = 0; i < block.count; ++i) {
    const PositionRange range = block.ranges[static_cast<std::size_t>(i)];
    if (!range.empty()) __builtin_prefetch(index.item_ids + index.order[range.begin]);
  }
  return row;
}

// Any id may be an item's, kNoItem too: `legal` says whether it is one.
void write(const RunBeams& beams, std::int64_t row, std::int64_t item, bool legal, std::int64_t levels, std::int64_t to,
           const RunItems& out) {
  out.items[to] = item;
  std::copy_n(beams.codes + row * levels, levels, out.semantic_ids + to * levels);
  out.logprobs[to] = beams.scores[row];
  out.legal[to] = legal;
}

// Writes the results from `to` on, and returns where they end.
std::int64_t expand_request(const RunBeams& beams, std::int64_t request, const ItemIndex& index, std::int64_t to,
                            const RunItems& out) {
  const std::int32_t* excluded = beams.excluded + beams.excluded_offsets[request];
  const std::int32_t* excluded_end = beams.excluded + beams.excluded_offsets[request + 1];
  const std::int64_t end = to + beams.num_results[request];
  std::int64_t next_row = beams.offsets[request];
  Block block;
  do {
    // A beam is at least one result where nothing is excluded, so that no more are needed.
    next_row = fill(block, beams, request, next_row, end - to, index);
    for (std::int64_t i = 0; i < block.count; ++i) {
      const std::int64_t row = block.rows[static_cast<std::size_t>(i)];
      const PositionRange range = block.ranges[static_cast<std::size_t>(i)];
      if (range.empty() && to < end) write(beams, row, kNoItem, false, index.levels, to++, out);
      for (std::int64_t p = range.begin; p < range.end && to < end; ++p) {
        if (std::binary_search(excluded, excluded_end, p)) continue;
        write(beams, row, index.item_ids[index.order[p]], true, index.levels, to++, out);
      }
    }
  } while (block.count > 0);
  return to;
}

}  // namespace

std::int64_t max_results(const RunBeams& beams) {
  return std::accumulate(beams.num_results, beams.num_results + beams.size, std::int64_t{0});
}

void expand(const RunBeams& beams, const ItemIndex& index, const RunItems& out) {
  out.offsets[0] = 0;
  for (std::int64_t b = 0; b < beams.size; ++b)
    out.offsets[b + 1] = expand_request(beams, b, index, out.offsets[b], out);
}

}  // namespace onerec
