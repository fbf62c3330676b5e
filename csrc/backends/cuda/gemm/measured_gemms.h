// Measured winners of the matrix product, ahead of the model of gemm_select.cpp. A row says: for weights
// [outputs, inputs] and min_rows to max_rows rows, `config` (an index of kGemmConfigs, or -1 for the plain kernel) took
// the least time. Rows are searched in order.
#pragma once

#include <array>
#include <cstdint>

#include "backends/cuda/gemm/gemm_configs.h"

namespace onerec::cuda {

struct MeasuredGemm {
  GemmTypes types;
  std::int64_t outputs;
  std::int64_t inputs;
  std::int64_t min_rows;
  std::int64_t max_rows;
  int config;
};

inline constexpr std::array<MeasuredGemm, 0> kMeasuredGemms{};

}  // namespace onerec::cuda
