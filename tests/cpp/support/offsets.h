// Offsets of ragged requests.
#pragma once

#include <cstdint>
#include <numeric>
#include <vector>

#include "support/tensors.h"

namespace onerec::test {

// [0, counts[0], counts[0] + counts[1], ...]
inline std::vector<std::int32_t> offsets_of(const std::vector<std::int64_t>& counts) {
  std::vector<std::int32_t> offsets = {0};
  for (const std::int64_t count : counts) offsets.push_back(offsets.back() + static_cast<std::int32_t>(count));
  return offsets;
}

inline std::int64_t total_of(const std::vector<std::int64_t>& counts) {
  return std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
}

inline std::int64_t largest_of(const std::vector<std::int64_t>& counts) {
  return counts.empty() ? 0 : *std::max_element(counts.begin(), counts.end());
}

}  // namespace onerec::test
