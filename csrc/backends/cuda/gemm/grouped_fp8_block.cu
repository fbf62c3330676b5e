#include "backends/cuda/gemm/grouped_launch.cuh"

namespace onerec::cuda {
namespace {

template <int kBlocks>
GroupedRunner find_token_rows(const GroupedConfig& config) {
  using Tile = kernels::TokenRowsTile<kernels::GroupedResult::kValues, kBlocks>;
  const bool same = config.outputs == Tile::kOutputs && config.tokens == Tile::kTokens && config.blocks == kBlocks;
  return same ? &run_grouped<kernels::TokenRowsMultiplier<Tile>> : nullptr;
}

}  // namespace

GroupedRunner grouped_fp8_block(const GroupedConfig& config) {
  if (config.layout == GroupedLayout::kWeightRows) return find_grouped_tile<kernels::GroupedFormat::kFp8Block>(config);
  const GroupedRunner pairs = find_token_rows<2>(config);
  return pairs != nullptr ? pairs : find_token_rows<1>(config);
}

}  // namespace onerec::cuda
