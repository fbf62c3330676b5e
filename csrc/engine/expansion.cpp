#include "engine/expansion.h"

#include <algorithm>
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

// An item is three look-ups away from its beam, each at a random place. Every one is asked for some beams ahead, so
// that those of several beams come side by side from memory.
void prefetch(const RunBeams& beams, std::int64_t row, std::int64_t end, const ItemIndex& index) {
  constexpr std::int64_t kAhead = 16;
  const auto leaf_at = [&](std::int64_t ahead) {
    const std::int64_t leaf = row + ahead < end ? beams.leaves[row + ahead] : 0;
    return std::clamp(leaf, std::int64_t{0}, index.leaves - 1);
  };
  __builtin_prefetch(index.leaf_items + leaf_at(3 * kAhead));
  __builtin_prefetch(index.order + index.leaf_items[leaf_at(2 * kAhead)]);
  __builtin_prefetch(index.item_ids + index.order[index.leaf_items[leaf_at(kAhead)]]);
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
  const std::int64_t rows_end = beams.offsets[request + 1];
  const std::int64_t end = to + beams.num_results[request];
  for (std::int64_t row = beams.offsets[request]; row < rows_end && to < end; ++row) {
    if (beams.constrained[request] != 0) prefetch(beams, row, rows_end, index);
    if (!is_alive(beams, row)) continue;
    const PositionRange range = positions_of(beams, request, row, index);
    if (range.empty()) write(beams, row, kNoItem, false, index.levels, to++, out);
    for (std::int64_t p = range.begin; p < range.end && to < end; ++p) {
      if (std::binary_search(excluded, excluded_end, p)) continue;
      write(beams, row, index.item_ids[index.order[p]], true, index.levels, to++, out);
    }
  }
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
