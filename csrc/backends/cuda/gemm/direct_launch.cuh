// How an instance of the direct kernel is started; included by the sources that compile one.
#pragma once

#include <algorithm>

#include "backends/cuda/gemm/dense_params.cuh"
#include "backends/cuda/gemm/direct_instances.h"
#include "backends/cuda/gemm/direct_kernel.cuh"
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
  kernels::DirectParams params =
      dense_params(op, call, kernels::weight_boxes(Tile::kResult, Tile::kVectorColumns, call.outputs, Tile::kPartRows),
                   Tile::kTokens);
  if constexpr (Tile::kAdded) {
    params.residual_boxes = make_tensor_map(
        op, {.data = call.residual, .columns = params.columns, .rows = params.rows, .row_stride = call.residual_stride},
        {.columns = Tile::kPanelColumns, .rows = Tile::kTokens});
  }
  if constexpr (Tile::kSwiglu) {
    params.columns = call.outputs / 2;
    params.codes = {.progress = static_cast<std::uint32_t*>(call.progress),
                    .codes = static_cast<std::uint8_t*>(call.codes),
                    .stride = call.codes_stride,
                    .scales = call.code_scales,
                    .static_scale = call.static_scale};
  }
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
  if constexpr (Tile::kCoding) {
    if (params.codes.progress != nullptr) {
      constexpr int kThreads = 256;
      const std::int64_t words = kernels::DirectProgress(params.rows).words();
      launch(stream, kOp, kernels::clear_progress<kThreads>,
             {.grid = dim3(blocks_for(words, kThreads)), .block = dim3(kThreads)}, params.codes.progress, words);
    }
  }
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

// Of kSwigluConfigs.
template <kernels::DirectResult kResult>
DirectRunner find_swiglu(const GemmConfig& config) {
  for (const auto find : {find_direct<kResult, 256, 2>, find_direct<kResult, 224, 2>, find_direct<kResult, 160, 2>,
                          find_direct<kResult, 128, 2>}) {
    if (const DirectRunner runner = find(config)) return runner;
  }
  return nullptr;
}

}  // namespace onerec::cuda
