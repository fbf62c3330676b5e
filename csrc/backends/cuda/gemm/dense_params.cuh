// What a call is to the dense FP8 kernels of our own, direct and split.
#pragma once

#include "backends/cuda/gemm/dense_instances.h"
#include "backends/cuda/gemm/direct_ring.cuh"
#include "backends/cuda/gemm/tensor_map.h"

namespace onerec::cuda {

// `boxes`: how a tile's weights are copied; `tokens`: rows of x in a tile. One column of the result per output, no
// codes.
inline kernels::DirectParams dense_params(const char* op, const DenseGemmCall& call, const kernels::WeightBoxes& boxes,
                                          int tokens) {
  kernels::DirectParams params{};
  params.weights = make_tensor_map(op, call.weights, call.inputs, boxes);
  params.tokens = make_tensor_map(
      op,
      {.data = call.x, .dtype = DType::kE4M3, .columns = call.inputs, .rows = call.rows, .row_stride = call.x_stride},
      {.columns = kernels::kTileRowBytes, .rows = tokens});
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

}  // namespace onerec::cuda
