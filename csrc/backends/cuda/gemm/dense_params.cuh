// What a call is to the dense FP8 kernels of our own, direct and split.
#pragma once

#include "backends/cuda/gemm/direct_instances.h"
#include "backends/cuda/gemm/direct_ring.cuh"
#include "backends/cuda/gemm/tensor_map.h"

namespace onerec::cuda {

inline kernels::PendingRows pending_rows(const float* scales, const PendingNorm& pending) {
  return {.scales = scales,
          .squares = reinterpret_cast<const unsigned long long*>(pending.squares),
          .unit = pending.unit,
          .inverse_width = 1.0f / static_cast<float>(pending.width),
          .eps = pending.eps};
}

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
  params.tokens_norm = pending_rows(call.x_scales, call.norms->x);
  if (const LinearNormParams* const y = call.norms->y) {
    const Operand& codes = y->norm.quantized;
    params.norm = {.gamma = y->norm.gamma,
                   .codes = static_cast<std::uint8_t*>(codes.values.data),
                   .stride = codes.values.stride,
                   .scales = codes.scales,
                   .unit = codes.pending.unit,
                   .target = {.squares = reinterpret_cast<unsigned long long*>(codes.pending.squares),
                              .next_squares = reinterpret_cast<unsigned long long*>(codes.pending.next_squares)},
                   .previous = pending_rows(y->previous.scales, y->previous.pending),
                   .overflowed = y->overflowed};
  }
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
