#include <algorithm>
#include <iterator>

#include "backends/cuda/gemm/direct_instances.h"
#include "backends/cuda/gemm/split_kernel.cuh"
#include "backends/cuda/gemm/tensor_map.h"
#include "backends/cuda/launch.h"

namespace onerec::cuda {
namespace {

constexpr const char* kOp = "linear";

template <class Tile>
kernels::DirectParams split_params(const DenseGemmCall& call) {
  const kernels::WeightBoxes boxes = kernels::split_weight_boxes(call.outputs, Tile::kOutputs);
  RowArray weights{.data = call.weights, .columns = call.inputs};
  std::copy(std::begin(boxes.extents), std::end(boxes.extents), weights.extents);
  std::copy(std::begin(boxes.strides), std::end(boxes.strides), weights.strides);
  kernels::DirectParams params{};
  params.weights = make_tensor_map(kOp, weights, boxes.box);
  params.tokens = make_tensor_map(
      kOp,
      {.data = call.x, .dtype = DType::kE4M3, .columns = call.inputs, .rows = call.rows, .row_stride = call.x_stride},
      {.columns = kernels::kTileRowBytes, .rows = Tile::kTokens});
  params.weight_scales = call.weight_scales;
  params.token_scales = call.x_scales;
  params.bias = call.bias;
  params.residual = static_cast<const __nv_bfloat16*>(call.residual);
  params.residual_stride = call.residual_stride;
  params.y = static_cast<__nv_bfloat16*>(call.y);
  params.y_stride = call.y_stride;
  params.live_rows = call.live_rows;
  params.rows = call.rows;
  params.columns = call.outputs;
  params.depth_steps = (call.inputs + kernels::kTileRowBytes - 1) / kernels::kTileRowBytes;
  return params;
}

// A cluster per tile and row tiles that share its weights.
template <class Tile>
void run_split(Stream& stream, const DenseGemmCall& call) {
  const std::uint32_t clusters = blocks_for(call.rows, Tile::kClusterRows) * blocks_for(call.outputs, Tile::kOutputs);
  launch(stream, kOp, kernels::split_kernel<Tile>,
         {.grid = dim3(clusters * Tile::kCluster), .block = dim3(Tile::kThreads), .shared_bytes = Tile::kSharedBytes},
         split_params<Tile>(call));
}

template <int kOutputs, int kShare, int kParts>
DirectRunner find_split(const GemmConfig& config) {
  using Tile = kernels::SplitTile<kOutputs, kShare, kParts>;
  const bool same = config.tile_rows == Tile::kTokens && config.tile_outputs == kOutputs && config.cluster == kShare &&
                    config.depth_parts == kParts;
  return same ? &run_split<Tile> : nullptr;
}

}  // namespace

DirectRunner split_fp8(const GemmConfig& config) {
  for (const auto find : {find_split<96, 1, 2>, find_split<96, 2, 2>, find_split<112, 1, 2>, find_split<112, 2, 2>,
                          find_split<128, 1, 2>, find_split<128, 2, 2>, find_split<128, 1, 4>}) {
    if (const DirectRunner runner = find(config)) return runner;
  }
  return nullptr;
}

}  // namespace onerec::cuda
