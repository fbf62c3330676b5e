// Which kernel multiplies rows sorted by expert. Plain C++: depends on shapes, capacities and addresses alone.
#pragma once

#include <cstdint>
#include <span>

#include "ops/grouped_linear.h"
#include "ops/grouped_swiglu.h"
#include "ops/routed_feed_forward.h"

namespace onerec::cuda {

// What the rows of the matrix instruction are; see grouped_weight_rows.cuh and grouped_token_rows.cuh.
enum class GroupedLayout : std::uint8_t { kWeightRows, kTokenRows };

// One compiled tensor-core kernel: blocks work on `outputs` of a weight x `tokens`.
struct GroupedConfig {
  const char* name;  // such as "fp8_block_128x16"
  WeightFormat format;
  int outputs;
  int tokens;
  GroupedLayout layout = GroupedLayout::kWeightRows;
  int blocks = 1;  // of a cluster, which share what they load
};

std::span<const GroupedConfig> grouped_configs();

// The kernels that apply SwiGLU and quantise. Half of a block's outputs are gates.
std::span<const GroupedConfig> grouped_swiglu_configs();

// What the rows of every expert should start at a multiple of, for `rows` rows of which each goes to `top_k` of
// `experts`: the tokens of the kernel that suits so many rows per expert.
std::int64_t choose_grouped_alignment(std::int64_t rows, std::int64_t experts, std::int64_t top_k);

// Whether that kernel can do this product. Otherwise a plain kernel must.
bool grouped_config_fits(const GroupedConfig& config, const GroupedLinearParams& params);
// The same for one of grouped_swiglu_configs().
bool grouped_swiglu_config_fits(const GroupedConfig& config, const GroupedSwigluParams& params);

// Instead of an index of grouped_configs(): plain_linear().
inline constexpr int kPlainGrouped = -1;

// Index of the config with the most tokens that fits and suits the number of rows, or kPlainGrouped.
int choose_grouped_config(const GroupedLinearParams& params);

// Instead of an index of grouped_swiglu_configs(): a product and SwiGLU on their own.
inline constexpr int kUnfusedSwiglu = -1;

// Index of the config with the most tokens that fits and suits the number of rows, or kUnfusedSwiglu.
int choose_grouped_swiglu_config(const GroupedSwigluParams& params);

// The kernels that do both products of the experts' networks, for few tokens. `outputs` are those of the first.
std::span<const GroupedConfig> network_configs();
bool network_config_fits(const GroupedConfig& config, const RoutedFeedForwardParams& params);

// Instead of an index of network_configs(): the products on their own.
inline constexpr int kNoNetwork = -1;

// Index of the config that fits, or kNoNetwork.
int choose_network_config(const RoutedFeedForwardParams& params);

// That the blocks of such a kernel count with.
std::int64_t network_progress_words(const RoutedFeedForwardParams& params);

}  // namespace onerec::cuda
