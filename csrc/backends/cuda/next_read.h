// Which weights kernels bring into L2 for the kernels behind them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "backends/cuda/alignment.h"
#include "backends/cuda/cuda_weight.h"
#include "backends/cuda/kernels/next_read.cuh"

namespace onerec::cuda {

// Of a weight that is read next (null: none known) by a product of `rows` rows.
inline kernels::NextRead next_read(const LinearWeight* weight, std::int64_t rows) {
  // Products of fewer rows begin to read before the kernel ahead of them ends; those of more take far longer than their
  // weight.
  constexpr std::int64_t kFewestRows = 16;
  constexpr std::int64_t kMostRows = 1024;
  constexpr std::int64_t kMostBytes = std::int64_t{24} << 20;  // half of L2
  if (weight == nullptr || rows < kFewestRows || rows > kMostRows) return {};
  const auto* const data = static_cast<const std::uint8_t*>(weight_of(weight).values());
  if (!at_vector(data)) return {};
  const std::int64_t bytes =
      weight->experts * weight->outputs * weight->inputs * static_cast<std::int64_t>(size_of(weight->dtype));
  return {data, std::min(bytes, kMostBytes) / 16 * 16};
}

}  // namespace onerec::cuda
