// The catalogue's items on the host: where an id is, and which items a beam stands for.
#pragma once

#include <cstdint>

namespace onerec {

// Trie positions [begin, end).
struct PositionRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;

  bool empty() const { return begin == end; }
};

// Non-owning arrays of the caller's. Item i is the one with the i-th smallest id; trie positions and leaves are those
// of ItemTrie over the items in that order.
struct ItemIndex {
  std::int64_t items = 0;
  std::int64_t leaves = 0;
  std::int64_t levels = 0;
  const std::int64_t* item_ids = nullptr;      // [items], ascending and distinct
  const std::int32_t* semantic_ids = nullptr;  // [items, levels]
  const std::int32_t* order = nullptr;         // [items]: the item at each trie position
  const std::int32_t* position = nullptr;      // [items]: the trie position of each item
  const std::int32_t* leaf_items = nullptr;    // [leaves + 1]: where each leaf's positions begin

  const std::int32_t* codes(std::int64_t item) const { return semantic_ids + item * levels; }
  PositionRange leaf(std::int64_t leaf) const { return {leaf_items[leaf], leaf_items[leaf + 1]}; }
  // The items with `codes` [levels]; empty if there are none.
  PositionRange with_codes(const std::int32_t* codes) const;
};

// The place of `id` in `ids` [count], ascending and distinct; -1 if it is not among them.
std::int64_t find_id(const std::int64_t* ids, std::int64_t count, std::int64_t id);

}  // namespace onerec
