#include "backends/cuda/gemm/grouped_launch.cuh"

namespace onerec::cuda {
namespace {

constexpr auto kCodes = kernels::GroupedResult::kSwigluCodes;

template <int kTokens>
using WeightRows =
    kernels::WeightRowsMultiplier<kernels::WeightRowsTile<kernels::GroupedFormat::kFp8Block, kTokens, 2, kCodes>>;

template <int kBlocks>
GroupedSwigluRunner find_token_rows(const GroupedConfig& config) {
  using Tile = kernels::TokenRowsTile<kCodes, kBlocks>;
  const bool same = config.tokens == Tile::kTokens && config.blocks == kBlocks;
  return same ? &run_grouped_swiglu<kernels::TokenRowsMultiplier<Tile>> : nullptr;
}

}  // namespace

GroupedSwigluRunner grouped_swiglu_fp8_block(const GroupedConfig& config) {
  if (config.layout == GroupedLayout::kTokenRows) {
    const GroupedSwigluRunner pairs = find_token_rows<2>(config);
    return pairs != nullptr ? pairs : find_token_rows<1>(config);
  }
  switch (config.tokens) {
    case 16:
      return &run_grouped_swiglu<WeightRows<16>>;
    case 32:
      return &run_grouped_swiglu<WeightRows<32>>;
    case 64:
      return &run_grouped_swiglu<WeightRows<64>>;
    case 128:
      return &run_grouped_swiglu<WeightRows<128>>;
    default:
      return nullptr;
  }
}

}  // namespace onerec::cuda
