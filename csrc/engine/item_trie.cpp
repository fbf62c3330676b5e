#include "engine/item_trie.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "core/arena.h"
#include "core/error.h"

namespace onerec {

ItemTrie::ItemTrie(const std::int32_t* semantic_ids, std::int64_t items,
                   const std::vector<std::int64_t>& codebook_sizes, Device& device)
    : levels_(static_cast<int>(codebook_sizes.size())) {
  require(items > 0, "[catalogue] got no items, want at least one.");
  require(items < std::numeric_limits<std::int32_t>::max(), "[catalogue] got ", items,
          " items, want fewer than 2**31 - 1.");
  for (std::int64_t i = 0; i < items * levels_; ++i) {
    const std::int64_t size = codebook_sizes[static_cast<std::size_t>(i % levels_)];
    require(semantic_ids[i] >= 0 && semantic_ids[i] < size, "[catalogue] item ", i / levels_, ": got code ",
            semantic_ids[i], " at level ", i % levels_, ", want one in [0, ", size, ").");
  }
  order_.resize(static_cast<std::size_t>(items));
  std::iota(order_.begin(), order_.end(), std::int64_t{0});
  std::stable_sort(order_.begin(), order_.end(), [&](std::int64_t a, std::int64_t b) {
    return std::lexicographical_compare(semantic_ids + a * levels_, semantic_ids + (a + 1) * levels_,
                                        semantic_ids + b * levels_, semantic_ids + (b + 1) * levels_);
  });
  build(semantic_ids);
  upload(device);
}

void ItemTrie::build(const std::int32_t* semantic_ids) {
  const auto items = static_cast<std::int32_t>(order_.size());
  // `begins` are the positions at which the nodes of a level start; a new edge starts where the codes up to here first
  // differ.
  std::vector<std::int32_t> begins = {0};
  for (int t = 0; t < levels_; ++t) {
    std::vector<std::int32_t> row_ptr;
    std::vector<std::int32_t> code;
    std::vector<std::int32_t> item_begin;
    for (std::size_t node = 0; node < begins.size(); ++node) {
      row_ptr.push_back(static_cast<std::int32_t>(code.size()));
      const std::int32_t end = node + 1 < begins.size() ? begins[node + 1] : items;
      for (std::int32_t p = begins[node]; p < end; ++p) {
        const std::int32_t c = semantic_ids[order_[static_cast<std::size_t>(p)] * levels_ + t];
        if (p > begins[node] && c == code.back()) continue;
        code.push_back(c);
        item_begin.push_back(p);
      }
    }
    row_ptr.push_back(static_cast<std::int32_t>(code.size()));
    begins = item_begin;
    item_begin.push_back(items);
    row_ptr_.push_back(std::move(row_ptr));
    code_.push_back(std::move(code));
    item_begin_.push_back(std::move(item_begin));
  }
}

void ItemTrie::upload(Device& device) {
  std::size_t total = 0;
  for (const auto* arrays : {&row_ptr_, &code_, &item_begin_}) {
    for (const auto& array : *arrays) total += align_up(array.size() * sizeof(std::int32_t));
  }
  arrays_ = device.allocate(total);
  table_ = device.allocate(sizeof(TrieTable));
  bytes_ = arrays_->bytes() + table_->bytes();
  const auto stream = device.make_stream();
  Arena arena(arrays_->data(), align_up(arrays_->bytes()));
  const auto copy = [&](const std::vector<std::int32_t>& array) {
    auto* to = arena.allocate_array<std::int32_t>(static_cast<std::int64_t>(array.size()));
    stream->copy_to_device(to, array.data(), array.size() * sizeof(std::int32_t));
    return to;
  };
  TrieTable table;
  table.levels = levels_;
  for (std::size_t t = 0; t < code_.size(); ++t) {
    table.level[t] = {.row_ptr = copy(row_ptr_[t]), .code = copy(code_[t]), .item_begin = copy(item_begin_[t])};
    table.edges[t] = static_cast<std::int32_t>(code_[t].size());
    edges_.push_back(table.edges[t]);
  }
  stream->copy_to_device(table_->data(), &table, sizeof(table));
  stream->synchronize();
  // The last level's item_begin_ stays for leaf_items(); the rest lives on the device alone.
  row_ptr_.clear();
  code_.clear();
  item_begin_.erase(item_begin_.begin(), item_begin_.end() - 1);
}

}  // namespace onerec
