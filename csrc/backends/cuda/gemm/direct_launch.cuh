// How an instance of the direct kernel is started; included by the sources that compile one.
#pragma once

#include <algorithm>

#include "backends/cuda/gemm/direct_instances.h"
#include "backends/cuda/gemm/direct_kernel.cuh"
#include "backends/cuda/gemm/tensor_map.h"
#include "backends/cuda/launch.h"

namespace onerec::cuda {

// How many clusters the device holds at a time: clusters of four leave some multiprocessors unused.
template <class Tile>
int resident_clusters(const char* op) {
  const auto kernel = kernels::direct_kernel<Tile>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tile::kSharedBytes), op);
  cudaLaunchAttribute shape{};
  shape.id = cudaLaunchAttributeClusterDimension;
  shape.val.clusterDim.x = Tile::kCluster;
  shape.val.clusterDim.y = 1;
  shape.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(Tile::kCluster);
  config.blockDim = dim3(Tile::kThreads);
  config.dynamicSmemBytes = Tile::kSharedBytes;
  config.attrs = &shape;
  config.numAttrs = 1;
  int clusters = 0;
  check(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config), op);
  return clusters;
}

template <class Tile>
kernels::DirectParams direct_params(const char* op, const DenseGemmCall& call) {
  const kernels::WeightBoxes boxes = kernels::weight_boxes(Tile::kResult, call.outputs, Tile::kPartRows);
  RowArray weights{.data = call.weights, .columns = call.inputs};
  std::copy(std::begin(boxes.extents), std::end(boxes.extents), weights.extents);
  std::copy(std::begin(boxes.strides), std::end(boxes.strides), weights.strides);
  kernels::DirectParams params{};
  params.weights = make_tensor_map(op, weights, boxes.box);
  params.tokens = make_tensor_map(
      op,
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
  params.columns = Tile::kSwiglu ? call.outputs / 2 : call.outputs;
  params.codes = {.progress = static_cast<std::uint32_t*>(call.progress),
                  .codes = static_cast<std::uint8_t*>(call.codes),
                  .stride = call.codes_stride,
                  .scales = call.code_scales};
  params.depth_steps = (call.inputs + kernels::kTileRowBytes - 1) / kernels::kTileRowBytes;
  return params;
}

template <class Tile>
void run_direct(Stream& stream, const DenseGemmCall& call) {
  constexpr const char* kOp = Tile::kSwiglu ? "linear_swiglu" : "linear";
  const kernels::DirectParams params = direct_params<Tile>(kOp, call);
  const kernels::DirectTiles tiles(params.rows, Tile::kClusterRows,
                                   (params.columns + Tile::kColumns - 1) / Tile::kColumns);
  static const int resident = resident_clusters<Tile>(kOp);
  const int clusters = std::min({tiles.count(), resident, std::max(1, call.multiprocessors / Tile::kCluster)});
  launch(stream, kOp, kernels::direct_kernel<Tile>,
         {.grid = dim3(static_cast<unsigned>(clusters * Tile::kCluster)),
          .block = dim3(Tile::kThreads),
          .shared_bytes = Tile::kSharedBytes},
         params);
}

template <kernels::DirectResult kResult, int kOutputs, int kCluster>
DirectRunner find_direct(const GemmConfig& config) {
  using Tile = kernels::DirectTile<kOutputs, kCluster, kResult>;
  const bool same = config.tile_rows == Tile::kTokens && config.tile_outputs == kOutputs && config.cluster == kCluster;
  return same ? &run_direct<Tile> : nullptr;
}

}  // namespace onerec::cuda
