#include "backends/cuda/gemm/grouped_select.h"

#include <limits>

#include "backends/cuda/gemm/direct_tiles.h"
#include "backends/cuda/gemm/network_tiles.h"

namespace onerec::cuda {
namespace {

// Of two with as many tokens the first is preferred. Few tokens: 128 outputs, which gives the most blocks, since the
// weights' way from memory is the limit. 128 tokens: 256 outputs, which takes a quarter less from the L2 cache per
// product; clusters of two blocks, which take another third less, pay for gates and ups alone, where an expert has
// enough rows for them.
constexpr GroupedConfig kConfigs[] = {
    {.name = "bf16_128x16", .format = WeightFormat::kDense, .outputs = 128, .tokens = 16},
    {.name = "bf16_128x32", .format = WeightFormat::kDense, .outputs = 128, .tokens = 32},
    {.name = "bf16_128x64", .format = WeightFormat::kDense, .outputs = 128, .tokens = 64},
    {.name = "bf16_256x64", .format = WeightFormat::kDense, .outputs = 256, .tokens = 64},
    {.name = "bf16_256x128", .format = WeightFormat::kDense, .outputs = 256, .tokens = 128},
    {.name = "bf16_128x128", .format = WeightFormat::kDense, .outputs = 128, .tokens = 128},
    {.name = "fp8_channel_128x16", .format = WeightFormat::kFp8Channel, .outputs = 128, .tokens = 16},
    {.name = "fp8_channel_128x32", .format = WeightFormat::kFp8Channel, .outputs = 128, .tokens = 32},
    {.name = "fp8_channel_128x64", .format = WeightFormat::kFp8Channel, .outputs = 128, .tokens = 64},
    {.name = "fp8_channel_256x64", .format = WeightFormat::kFp8Channel, .outputs = 256, .tokens = 64},
    {.name = "fp8_channel_256x128", .format = WeightFormat::kFp8Channel, .outputs = 256, .tokens = 128},
    {.name = "fp8_channel_128x128", .format = WeightFormat::kFp8Channel, .outputs = 128, .tokens = 128},
    {.name = "fp8_block_128x16", .format = WeightFormat::kFp8Block, .outputs = 128, .tokens = 16},
    {.name = "fp8_block_128x32", .format = WeightFormat::kFp8Block, .outputs = 128, .tokens = 32},
    {.name = "fp8_block_128x64", .format = WeightFormat::kFp8Block, .outputs = 128, .tokens = 64},
    {.name = "fp8_block_256x64", .format = WeightFormat::kFp8Block, .outputs = 256, .tokens = 64},
    {.name = "fp8_block_256x128_token_rows",
     .format = WeightFormat::kFp8Block,
     .outputs = 256,
     .tokens = 128,
     .layout = GroupedLayout::kTokenRows},
    {.name = "fp8_block_256x128", .format = WeightFormat::kFp8Block, .outputs = 256, .tokens = 128},
    {.name = "fp8_block_128x128", .format = WeightFormat::kFp8Block, .outputs = 128, .tokens = 128},
};

constexpr GroupedConfig kSwigluConfigs[] = {
    {.name = "swiglu_fp8_block_256x16", .format = WeightFormat::kFp8Block, .outputs = 256, .tokens = 16},
    {.name = "swiglu_fp8_block_256x32", .format = WeightFormat::kFp8Block, .outputs = 256, .tokens = 32},
    {.name = "swiglu_fp8_block_256x64", .format = WeightFormat::kFp8Block, .outputs = 256, .tokens = 64},
    {.name = "swiglu_fp8_block_256x128_pairs",
     .format = WeightFormat::kFp8Block,
     .outputs = 256,
     .tokens = 128,
     .layout = GroupedLayout::kTokenRows,
     .blocks = 2},
    {.name = "swiglu_fp8_block_256x128_token_rows",
     .format = WeightFormat::kFp8Block,
     .outputs = 256,
     .tokens = 128,
     .layout = GroupedLayout::kTokenRows},
    {.name = "swiglu_fp8_block_256x128", .format = WeightFormat::kFp8Block, .outputs = 256, .tokens = 128},
};

// An expert of more tokens is multiplied by other kernels, which memory does not limit.
constexpr GroupedConfig kNetworkConfigs[] = {
    {.name = "network_fp8_block_16", .format = WeightFormat::kFp8Block, .outputs = 256, .tokens = 16},
    {.name = "network_fp8_block_32", .format = WeightFormat::kFp8Block, .outputs = 256, .tokens = 32},
    {.name = "network_fp8_block_64", .format = WeightFormat::kFp8Block, .outputs = 256, .tokens = 64},
};

// Up to `rows_per_expert` rows on average, tiles of `tokens`. About twice the average, so that most experts' weights
// are read once: rows that a tile lacks cost little while the weights are what takes the time. The last step goes
// further: beyond it an expert's products are no longer made by one kernel.
struct TokenStep {
  std::int64_t rows_per_expert;
  std::int64_t tokens;
};
constexpr TokenStep kTokenSteps[] = {{8, 16}, {20, 32}, {60, 64}};
constexpr std::int64_t kMostTokens = 128;

// Clusters are for capacities of at least this many rows per expert.
constexpr std::int64_t kPairRowsPerExpert = 300;

// The copy engine takes addresses and strides that are multiples of this.
constexpr std::int64_t kAccessBytes = 16;
constexpr std::int64_t kMostTiles = std::numeric_limits<std::int32_t>::max() / 2;

bool aligned(const void* data) { return reinterpret_cast<std::uintptr_t>(data) % kAccessBytes == 0; }

bool whole_accesses(std::int64_t elements, DType dtype) {
  return elements * static_cast<std::int64_t>(size_of(dtype)) % kAccessBytes == 0;
}

bool rows_aligned(const ConstMatrix& matrix) {
  return aligned(matrix.data) && whole_accesses(matrix.stride, matrix.dtype);
}

// Whether the kernel can read what is multiplied.
template <class Params>
bool product_fits(const GroupedConfig& config, const Params& p) {
  const LinearWeight& weight = *p.weight;
  if (weight.format != config.format || weight.dtype == DType::kF32) return false;
  if (p.alignment % config.tokens != 0 || p.rows_capacity == 0 || weight.inputs == 0) return false;
  if (!whole_accesses(weight.inputs, weight.dtype) || !rows_aligned(p.x.values)) return false;
  // Weights come in groups of so many outputs.
  if (config.layout == GroupedLayout::kTokenRows && weight.outputs % kernels::kResultGroup != 0) return false;
  if (config.format == WeightFormat::kFp8Block &&
      !(aligned(p.x.scales) && whole_accesses(p.x.scale_stride, DType::kF32))) {
    return false;
  }
  const std::int64_t output_tiles = (weight.outputs + config.outputs - 1) / config.outputs;
  return p.rows_capacity <= kMostTiles && output_tiles <= kMostTiles / (p.rows_capacity / config.tokens);
}

// Index of the first config with the most tokens of those that fit and suit the number of rows, else `none`.
template <class Params, class Fits>
int most_tokens(std::span<const GroupedConfig> configs, const Params& params, int none, const Fits& fits) {
  const bool many_rows = params.rows_capacity >= kPairRowsPerExpert * params.weight->experts;
  int best = none;
  int most = 0;
  for (std::size_t i = 0; i < configs.size(); ++i) {
    if (configs[i].blocks > 1 && !many_rows) continue;
    if (configs[i].tokens <= most || !fits(configs[i], params)) continue;
    best = static_cast<int>(i);
    most = configs[i].tokens;
  }
  return best;
}

}  // namespace

std::span<const GroupedConfig> grouped_configs() { return kConfigs; }

std::span<const GroupedConfig> grouped_swiglu_configs() { return kSwigluConfigs; }

std::int64_t choose_grouped_alignment(std::int64_t rows, std::int64_t experts, std::int64_t top_k) {
  for (const TokenStep& step : kTokenSteps) {
    if (rows * top_k <= step.rows_per_expert * experts) return step.tokens;
  }
  return kMostTokens;
}

bool grouped_config_fits(const GroupedConfig& config, const GroupedLinearParams& p) {
  if (p.y.dtype != DType::kBF16 || !whole_accesses(p.weight->outputs, p.y.dtype) || !rows_aligned(p.y)) return false;
  return product_fits(config, p);
}

bool grouped_swiglu_config_fits(const GroupedConfig& config, const GroupedSwigluParams& p) {
  // A block's gates and ups start at multiples of the scales' blocks. Rounding to BF16 is what the kernels do.
  if (p.gate_up.dtype != DType::kBF16 || p.width % kScaleBlock != 0 || !rows_aligned(p.quantized.values)) return false;
  return product_fits(config, p);
}

int choose_grouped_config(const GroupedLinearParams& params) {
  return most_tokens(kConfigs, params, kPlainGrouped, grouped_config_fits);
}

int choose_grouped_swiglu_config(const GroupedSwigluParams& params) {
  return most_tokens(kSwigluConfigs, params, kUnfusedSwiglu, grouped_swiglu_config_fits);
}

std::span<const GroupedConfig> network_configs() { return kNetworkConfigs; }

bool network_config_fits(const GroupedConfig& config, const RoutedFeedForwardParams& p) {
  return p.first.alignment == config.tokens && grouped_swiglu_config_fits(config, p.first) &&
         grouped_config_fits(config, p.second);
}

int choose_network_config(const RoutedFeedForwardParams& params) {
  for (std::size_t i = 0; i < std::size(kNetworkConfigs); ++i) {
    if (network_config_fits(kNetworkConfigs[i], params)) return static_cast<int>(i);
  }
  return kNoNetwork;
}

std::int64_t network_progress_words(const RoutedFeedForwardParams& params) {
  return kernels::NetworkProgress::words(params.first.rows_capacity / params.first.alignment);
}

}  // namespace onerec::cuda
