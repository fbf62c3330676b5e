#include "engine/item_index.h"

#include <algorithm>

namespace onerec {

PositionRange ItemIndex::with_codes(const std::int32_t* codes) const {
  const auto before = [&](std::int32_t item, const std::int32_t* wanted) {
    return std::lexicographical_compare(this->codes(item), this->codes(item) + levels, wanted, wanted + levels);
  };
  const std::int64_t begin = std::lower_bound(order, order + items, codes, before) - order;
  std::int64_t end = begin;
  while (end < items && std::equal(codes, codes + levels, this->codes(order[end]))) ++end;
  return {begin, end};
}

std::int64_t find_id(const std::int64_t* ids, std::int64_t count, std::int64_t id) {
  if (count == 0 || id < ids[0] || id > ids[count - 1]) return -1;
  // Ids are distinct, so that no more of them are before one than there are numbers between the first and it; behind it
  // likewise. Where that leaves one place, as it does without gaps, it is there. Differences may need the 64th bit.
  const auto gap = [](std::int64_t from, std::int64_t to) {
    return static_cast<std::uint64_t>(to) - static_cast<std::uint64_t>(from);
  };
  const auto last = static_cast<std::uint64_t>(count - 1);
  const std::uint64_t high = std::min(last, gap(ids[0], id));
  const std::uint64_t low = last - std::min(last, gap(id, ids[count - 1]));
  if (low == high) return static_cast<std::int64_t>(low);
  const std::int64_t* at = std::lower_bound(ids + low, ids + high, id);
  return *at == id ? at - ids : -1;
}

}  // namespace onerec
