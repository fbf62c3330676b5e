// The catalogue's semantic ids as a trie in compressed sparse rows, on a device.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "ops/backend.h"

namespace onerec {

// Items are sorted by their codes, ties in the order given: an item's place there is its trie position. Node and edge
// numbering: ops/beam_search.h. An edge of the last level is a leaf: a tuple of codes that at least one item has.
class ItemTrie {
 public:
  // `semantic_ids` [items, levels], item by item. Throws ArgumentError for a code outside its codebook or no items.
  ItemTrie(const std::int32_t* semantic_ids, std::int64_t items, const std::vector<std::int64_t>& codebook_sizes,
           Device& device);

  int levels() const { return levels_; }
  std::int64_t items() const { return static_cast<std::int64_t>(order_.size()); }
  // [items]: the item at each trie position.
  const std::vector<std::int64_t>& order() const { return order_; }
  // [leaves + 1]: leaf e has the trie positions [leaf_items()[e], leaf_items()[e + 1]).
  const std::vector<std::int32_t>& leaf_items() const { return item_begin_.back(); }
  std::int64_t edges(int level) const { return edges_[static_cast<std::size_t>(level)]; }
  // In device memory.
  const TrieTable* table() const { return static_cast<const TrieTable*>(table_->data()); }
  std::size_t bytes() const { return bytes_; }

 private:
  void build(const std::int32_t* semantic_ids);
  void upload(Device& device);

  int levels_;
  std::vector<std::int64_t> order_;
  std::vector<std::int64_t> edges_;
  std::vector<std::vector<std::int32_t>> row_ptr_;
  std::vector<std::vector<std::int32_t>> code_;
  std::vector<std::vector<std::int32_t>> item_begin_;
  std::unique_ptr<Buffer> arrays_;
  std::unique_ptr<Buffer> table_;
  std::size_t bytes_ = 0;
};

}  // namespace onerec
