// How an instance of the grouped kernel is started; included by the sources that compile one.
#pragma once

#include <algorithm>

#include "backends/cuda/cuda_weight.h"
#include "backends/cuda/gemm/grouped_instances.h"
#include "backends/cuda/gemm/grouped_kernel.cuh"
#include "backends/cuda/gemm/tensor_map.h"
#include "backends/cuda/launch.h"

namespace onerec::cuda {

template <class Tile>
void run_grouped(Stream& stream, const GroupedLinearParams& p, int multiprocessors) {
  const CudaWeight& weight = weight_of(p.weight);
  const Matrix& x = p.x.values;
  constexpr auto kDType = Tile::kCodes ? DType::kE4M3 : DType::kBF16;
  const kernels::GroupedParams params{
      .weights = make_tensor_map("grouped_linear",
                                 {.data = weight.values(),
                                  .dtype = kDType,
                                  .columns = weight.inputs,
                                  .rows = weight.outputs,
                                  .matrices = weight.experts,
                                  .row_stride = weight.inputs,
                                  .matrix_stride = weight.outputs * weight.inputs},
                                 {.columns = Tile::kDepth, .rows = Tile::kOutputs}),
      .tokens = make_tensor_map(
          "grouped_linear",
          {.data = x.data, .dtype = kDType, .columns = x.cols, .rows = p.rows_capacity, .row_stride = x.stride},
          {.columns = Tile::kDepth, .rows = Tile::kTokens}),
      .weight_scales = weight.scales(),
      .token_scales = p.x.scales,
      .token_scale_stride = p.x.scale_stride,
      .offsets = p.offsets,
      .y = static_cast<__nv_bfloat16*>(p.y.data),
      .y_stride = p.y.stride,
      .experts = static_cast<int>(weight.experts),
      .outputs = static_cast<int>(weight.outputs),
      .depth_steps = static_cast<int>((weight.inputs + Tile::kDepth - 1) / Tile::kDepth)};
  const std::int64_t tiles = p.rows_capacity / Tile::kTokens * ((weight.outputs + Tile::kOutputs - 1) / Tile::kOutputs);
  launch(stream, "grouped_linear", kernels::grouped_kernel<Tile>,
         {.grid = dim3(static_cast<unsigned>(std::min<std::int64_t>(tiles, multiprocessors))),
          .block = dim3(Tile::kThreads),
          .shared_bytes = Tile::kSharedBytes},
         params);
}

template <kernels::GroupedFormat kFormat, int kTokens, int kWaves>
GroupedRunner find_grouped(int outputs, int tokens) {
  using Tile = kernels::GroupedTile<kFormat, kTokens, kWaves>;
  return outputs == Tile::kOutputs && tokens == Tile::kTokens ? &run_grouped<Tile> : nullptr;
}

// Of the tiles that are compiled for every format.
template <kernels::GroupedFormat kFormat>
GroupedRunner find_grouped_tile(int outputs, int tokens) {
  for (const auto find : {find_grouped<kFormat, 16, 1>, find_grouped<kFormat, 32, 1>, find_grouped<kFormat, 64, 1>,
                          find_grouped<kFormat, 64, 2>, find_grouped<kFormat, 128, 1>, find_grouped<kFormat, 128, 2>}) {
    if (const GroupedRunner runner = find(outputs, tokens)) return runner;
  }
  return nullptr;
}

}  // namespace onerec::cuda
