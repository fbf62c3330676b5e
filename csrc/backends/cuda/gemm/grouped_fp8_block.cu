#include "backends/cuda/gemm/grouped_launch.cuh"

namespace onerec::cuda {

GroupedRunner grouped_fp8_block(const GroupedConfig& config) {
  if (config.layout == GroupedLayout::kWeightRows) return find_grouped_tile<kernels::GroupedFormat::kFp8Block>(config);
  using Tile = kernels::TokenRowsTile<kernels::GroupedResult::kValues, 1>;
  const bool same = config.outputs == Tile::kOutputs && config.tokens == Tile::kTokens && config.blocks == 1;
  return same ? &run_grouped<kernels::TokenRowsMultiplier<Tile>> : nullptr;
}

}  // namespace onerec::cuda
