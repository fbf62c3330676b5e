// How an instance of the grouped kernel is started; included by the sources that compile one.
#pragma once

#include <algorithm>

#include "backends/cuda/cuda_weight.h"
#include "backends/cuda/gemm/grouped_instances.h"
#include "backends/cuda/gemm/grouped_kernel.cuh"
#include "backends/cuda/gemm/grouped_token_rows.cuh"
#include "backends/cuda/gemm/grouped_weight_rows.cuh"
#include "backends/cuda/gemm/tensor_map.h"
#include "backends/cuda/launch.h"

namespace onerec::cuda {

// The parameters without the result.
template <class Tile, class Params>
kernels::GroupedParams grouped_params(const char* op, const Params& p) {
  const CudaWeight& weight = weight_of(p.weight);
  const Matrix& x = p.x.values;
  constexpr auto kDType = Tile::kCodes ? DType::kE4M3 : DType::kBF16;
  kernels::GroupedParams params{};
  if constexpr (Tile::kOrdered) {
    params.weights = make_tensor_map(op, weight.values(), weight.inputs,
                                     kernels::weight_boxes(kernels::DirectResult::kValues, kernels::kResultVector,
                                                           weight.experts * weight.outputs, Tile::kWeightBoxRows));
  } else {
    params.weights = make_tensor_map(op,
                                     {.data = weight.values(),
                                      .dtype = kDType,
                                      .columns = weight.inputs,
                                      .rows = weight.outputs,
                                      .matrices = weight.experts,
                                      .row_stride = weight.inputs,
                                      .matrix_stride = weight.outputs * weight.inputs},
                                     {.columns = Tile::kDepth, .rows = Tile::kWeightBoxRows});
  }
  params.tokens = make_tensor_map(
      op, {.data = x.data, .dtype = kDType, .columns = x.cols, .rows = p.rows_capacity, .row_stride = x.stride},
      {.columns = Tile::kDepth, .rows = Tile::kTokenBoxRows});
  params.weight_scales = weight.scales();
  params.token_scales = p.x.scales;
  params.token_scale_stride = p.x.scale_stride;
  params.offsets = p.offsets;
  params.experts = static_cast<int>(weight.experts);
  params.outputs = static_cast<int>(weight.outputs);
  params.depth_steps = static_cast<int>((weight.inputs + Tile::kDepth - 1) / Tile::kDepth);
  params.columns = params.outputs / (Tile::kSwiglu ? 2 : 1);
  return params;
}

// Of the experts: all of them if most have one tile of tokens each, else none.
inline int single_tile_experts(std::int64_t token_tiles, int experts) {
  // The capacity has room for every expert's padding: with less than two tiles for each, most have one.
  return token_tiles >= experts && token_tiles < 2 * std::int64_t{experts} ? experts : 0;
}

template <class Multiplier>
void launch_grouped(Stream& stream, const char* op, kernels::GroupedParams params, std::int64_t rows_capacity,
                    int multiprocessors) {
  using Tile = typename Multiplier::Tile;
  const std::int64_t token_tiles = rows_capacity / Tile::kTokens;
  params.single_tile_experts = single_tile_experts(token_tiles, params.experts);
  const std::int64_t tiles = token_tiles * ((params.columns + Tile::kColumns - 1) / Tile::kColumns);
  const std::int64_t clusters = std::min<std::int64_t>(tiles, std::max(1, multiprocessors / Tile::kBlocks));
  launch(stream, op, kernels::grouped_kernel_of<Multiplier>(),
         {.grid = dim3(static_cast<unsigned>(clusters * Tile::kBlocks)),
          .block = dim3(Tile::kThreads),
          .shared_bytes = Tile::kSharedBytes},
         params);
}

template <class Tile>
kernels::GroupedParams values_params(const char* op, const GroupedLinearParams& p) {
  kernels::GroupedParams params = grouped_params<Tile>(op, p);
  params.y = static_cast<__nv_bfloat16*>(p.y.data);
  params.y_stride = p.y.stride;
  return params;
}

template <class Tile>
kernels::GroupedParams codes_params(const char* op, const GroupedSwigluParams& p) {
  kernels::GroupedParams params = grouped_params<Tile>(op, p);
  params.codes = static_cast<std::uint8_t*>(p.quantized.values.data);
  params.code_stride = p.quantized.values.stride;
  params.code_scales = p.quantized.scales;
  params.code_scale_stride = p.quantized.scale_stride;
  return params;
}

template <class Multiplier>
void run_grouped(Stream& stream, const GroupedLinearParams& p, int multiprocessors) {
  constexpr const char* kOp = "grouped_linear";
  launch_grouped<Multiplier>(stream, kOp, values_params<typename Multiplier::Tile>(kOp, p), p.rows_capacity,
                             multiprocessors);
}

template <class Multiplier>
void run_grouped_swiglu(Stream& stream, const GroupedSwigluParams& p, int multiprocessors) {
  constexpr const char* kOp = "grouped_swiglu";
  launch_grouped<Multiplier>(stream, kOp, codes_params<typename Multiplier::Tile>(kOp, p), p.rows_capacity,
                             multiprocessors);
}

template <kernels::GroupedFormat kFormat, int kTokens, int kWaves>
GroupedRunner find_grouped(const GroupedConfig& config) {
  using Tile = kernels::WeightRowsTile<kFormat, kTokens, kWaves>;
  const bool same = config.outputs == Tile::kOutputs && config.tokens == Tile::kTokens;
  return same ? &run_grouped<kernels::WeightRowsMultiplier<Tile>> : nullptr;
}

// Of the tiles that are compiled for every format.
template <kernels::GroupedFormat kFormat>
GroupedRunner find_grouped_tile(const GroupedConfig& config) {
  if (config.layout != GroupedLayout::kWeightRows) return nullptr;
  for (const auto find : {find_grouped<kFormat, 16, 1>, find_grouped<kFormat, 32, 1>, find_grouped<kFormat, 64, 1>,
                          find_grouped<kFormat, 64, 2>, find_grouped<kFormat, 128, 1>, find_grouped<kFormat, 128, 2>}) {
    if (const GroupedRunner runner = find(config)) return runner;
  }
  return nullptr;
}

}  // namespace onerec::cuda
