#include "backends/cuda/gemm/grouped_launch.cuh"

namespace onerec::cuda {

GroupedRunner grouped_fp8_block(const GroupedConfig& config) {
  using Tile = kernels::TokenRowsTile<kernels::GroupedResult::kValues>;
  if (config.layout == GroupedLayout::kTokenRows) {
    const bool same = config.outputs == Tile::kOutputs && config.tokens == Tile::kTokens;
    return same ? &run_grouped<kernels::TokenRowsMultiplier<Tile>> : nullptr;
  }
  return find_grouped_tile<kernels::GroupedFormat::kFp8Block>(config);
}

}  // namespace onerec::cuda
