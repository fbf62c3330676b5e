// A small catalogue with the arrays of its ItemIndex.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "engine/item_index.h"

namespace onerec {

class IndexedItems {
 public:
  // `ids` ascending and distinct; a tuple of codes for each.
  IndexedItems(std::vector<std::int64_t> ids, const std::vector<std::vector<std::int32_t>>& tuples)
      : ids_(std::move(ids)), order_(ids_.size()), position_(ids_.size()) {
    for (const auto& tuple : tuples) codes_.insert(codes_.end(), tuple.begin(), tuple.end());
    std::iota(order_.begin(), order_.end(), 0);
    const auto tuple = [&](std::int32_t item) { return tuples[static_cast<std::size_t>(item)]; };
    std::stable_sort(order_.begin(), order_.end(), [&](auto a, auto b) { return tuple(a) < tuple(b); });
    for (std::size_t p = 0; p < order_.size(); ++p) {
      position_[static_cast<std::size_t>(order_[p])] = static_cast<std::int32_t>(p);
      if (p == 0 || tuple(order_[p]) != tuple(order_[p - 1])) leaf_items_.push_back(static_cast<std::int32_t>(p));
    }
    leaf_items_.push_back(static_cast<std::int32_t>(order_.size()));
    levels_ = tuples.front().size();
  }

  ItemIndex index() const {
    return {.items = static_cast<std::int64_t>(ids_.size()),
            .leaves = static_cast<std::int64_t>(leaf_items_.size()) - 1,
            .levels = static_cast<std::int64_t>(levels_),
            .item_ids = ids_.data(),
            .semantic_ids = codes_.data(),
            .order = order_.data(),
            .position = position_.data(),
            .leaf_items = leaf_items_.data()};
  }

 private:
  std::vector<std::int64_t> ids_;
  std::vector<std::int32_t> codes_, order_, position_, leaf_items_;
  std::size_t levels_ = 0;
};

}  // namespace onerec
