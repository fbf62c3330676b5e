#include "backends/cuda/gemm/dense_params.cuh"
#include "backends/cuda/gemm/direct_instances.h"
#include "backends/cuda/gemm/split_kernel.cuh"
#include "backends/cuda/launch.h"

namespace onerec::cuda {
namespace {

constexpr const char* kOp = "linear";

// A cluster per tile and row tiles that share its weights.
template <class Tile>
void run_split(Stream& stream, const DenseGemmCall& call) {
  const std::uint32_t clusters = blocks_for(call.rows, Tile::kClusterRows) * blocks_for(call.outputs, Tile::kOutputs);
  launch(stream, kOp, kernels::split_kernel<Tile>,
         {.grid = dim3(clusters * Tile::kCluster), .block = dim3(Tile::kThreads), .shared_bytes = Tile::kSharedBytes},
         dense_params(kOp, call, kernels::split_weight_boxes(call.outputs, Tile::kOutputs), Tile::kTokens));
}

template <int kOutputs, int kShare, int kParts, bool kNormed>
DirectRunner find_split(const GemmConfig& config) {
  using Tile = kernels::SplitTile<kOutputs, kShare, kParts, kNormed>;
  const bool same = config.tile_rows == Tile::kTokens && config.tile_outputs == kOutputs && config.cluster == kShare &&
                    config.depth_parts == kParts;
  return same ? &run_split<Tile> : nullptr;
}

template <bool kNormed>
DirectRunner find_any(const GemmConfig& config) {
  for (const auto find : {find_split<96, 1, 2, kNormed>, find_split<96, 2, 2, kNormed>, find_split<112, 1, 2, kNormed>,
                          find_split<112, 2, 2, kNormed>, find_split<128, 1, 2, kNormed>,
                          find_split<128, 2, 2, kNormed>, find_split<128, 1, 4, kNormed>, find_split<64, 1, 1, kNormed>,
                          find_split<32, 1, 1, kNormed>, find_split<64, 1, 2, kNormed>}) {
    if (const DirectRunner runner = find(config)) return runner;
  }
  return nullptr;
}

}  // namespace

DirectRunner split_fp8(const GemmConfig& config) { return find_any<false>(config); }

DirectRunner split_normed_fp8(const GemmConfig& config) { return find_any<true>(config); }

}  // namespace onerec::cuda
