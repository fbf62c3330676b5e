#include "backends/cuda/attention/flash_cross_attention.h"

#include <cuda.h>
#include <cuda_runtime.h>

#include "backends/cuda/attention/flash_instances.h"
#include "backends/cuda/kernels/combine_attention_splits.cuh"
#include "backends/cuda/launch.h"

namespace onerec::cuda {
namespace {

using kernels::ContextTensors;

decltype(&cuTensorMapEncodeTiled) find_encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found),
        "find cuTensorMapEncodeTiled");
  if (found != cudaDriverEntryPointSuccess || function == nullptr) {
    throw DeviceError(
        "[cross_attention] got a driver without cuTensorMapEncodeTiled, want one for CUDA 12 or later. "
        "Update the NVIDIA driver.");
  }
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
}

// Shows `tokens` rows of a context matrix in the boxes that the kernel copies.
CUtensorMap context_map(const ConstMatrix& matrix, std::int64_t tokens) {
  static const auto encode = find_encoder();
  CUtensorMap map{};
  const cuuint64_t extents[2] = {static_cast<cuuint64_t>(matrix.cols), static_cast<cuuint64_t>(tokens)};
  const cuuint64_t row_bytes[1] = {static_cast<cuuint64_t>(matrix.stride) * sizeof(__nv_bfloat16)};
  const cuuint32_t box[2] = {kernels::kFlashBoxColumns, kernels::kFlashTokens};
  const cuuint32_t steps[2] = {1, 1};
  const CUresult status = encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(matrix.data), extents,
                                 row_bytes, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw DeviceError(concat("[cross_attention] got CUDA driver error ", static_cast<int>(status),
                             " for a tensor map of ", tokens, " x ", matrix.cols, " with stride ", matrix.stride,
                             ", want success. Report this shape."));
  }
  return map;
}

template <int kHeadDim>
void combine(Stream& stream, const CrossAttentionParams& p, const kernels::AttentionSplits& splits) {
  const std::int64_t queries = p.rows_capacity * p.heads;
  launch(stream, "cross_attention combine", kernels::combine_attention_splits<kHeadDim>,
         {.grid = dim3(blocks_for(queries, kernels::kCombineWarps)), .block = dim3(kernels::kCombineThreads)}, splits);
}

}  // namespace

void flash_cross_attention(Stream& stream, const CrossAttentionParams& p, const FlashPlan& plan) {
  const bool shared = p.v.data == p.k.data && p.v.stride == p.k.stride;
  const CUtensorMap keys = context_map(p.k, p.tokens_capacity);
  const CUtensorMap values = shared ? keys : context_map(p.v, p.tokens_capacity);
  constexpr float kLog2E = 1.44269504088896340736f;
  const kernels::FlashAttentionArguments arguments{.q = static_cast<const __nv_bfloat16*>(p.q.data),
                                                   .q_stride = p.q.stride,
                                                   .out = static_cast<__nv_bfloat16*>(p.out.data),
                                                   .out_stride = p.out.stride,
                                                   .row_offsets = p.row_offsets,
                                                   .context_offsets = p.context_offsets,
                                                   .heads = static_cast<int>(p.heads),
                                                   .group_heads = static_cast<int>(p.heads / p.kv_heads),
                                                   .scale_log2 = p.scale * kLog2E,
                                                   .splits = plan.splits,
                                                   .rows_capacity = p.rows_capacity,
                                                   .split_sums = plan.sums,
                                                   .split_norms = reinterpret_cast<float2*>(plan.norms)};
  const FlashGrid grid{.request_queries = p.max_request_rows * (p.heads / p.kv_heads),
                       .groups = static_cast<int>(p.kv_heads),
                       .requests = p.batch};
  const auto run = p.head_dim == 64 ? launch_flash_head64 : launch_flash_head128;
  run(stream, grid, keys, values, shared ? ContextTensors::kShared : ContextTensors::kSeparate, arguments);
  if (plan.splits == 1) return;

  const kernels::AttentionSplits splits{.sums = plan.sums,
                                        .norms = reinterpret_cast<const float2*>(plan.norms),
                                        .splits = plan.splits,
                                        .rows_capacity = p.rows_capacity,
                                        .heads = static_cast<int>(p.heads),
                                        .rows_end = p.row_offsets + p.batch,
                                        .out = static_cast<__nv_bfloat16*>(p.out.data),
                                        .out_stride = p.out.stride};
  p.head_dim == 64 ? combine<64>(stream, p, splits) : combine<128>(stream, p, splits);
}

}  // namespace onerec::cuda
