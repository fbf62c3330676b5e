// Which kernel multiplies rows sorted by expert. Plain C++: depends on shapes, capacities and addresses alone.
#pragma once

#include <cstdint>
#include <span>

#include "ops/grouped_linear.h"

namespace onerec::cuda {

// One compiled tensor-core kernel: blocks work on `outputs` x `tokens` of y.
struct GroupedConfig {
  const char* name;  // such as "fp8_block_128x16"
  WeightFormat format;
  int outputs;
  int tokens;
};

std::span<const GroupedConfig> grouped_configs();

// What the rows of every expert should start at a multiple of, for `rows` rows of which each goes to `top_k` of
// `experts`: the tokens of the kernel that suits so many rows per expert.
std::int64_t choose_grouped_alignment(std::int64_t rows, std::int64_t experts, std::int64_t top_k);

// Whether that kernel can do this product. Otherwise a plain kernel must.
bool grouped_config_fits(const GroupedConfig& config, const GroupedLinearParams& params);

// Instead of an index of grouped_configs(): plain_linear().
inline constexpr int kPlainGrouped = -1;

// Index of the config with the most tokens that fits, or kPlainGrouped.
int choose_grouped_config(const GroupedLinearParams& params);

}  // namespace onerec::cuda
