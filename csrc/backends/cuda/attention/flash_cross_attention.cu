#include "backends/cuda/attention/flash_cross_attention.h"

#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>

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

// Dimensions from the innermost one on; `strides` of all but that, in elements.
template <int kRank>
struct MapShape {
  cuuint64_t extents[kRank];
  std::int64_t strides[kRank - 1];
  cuuint32_t box[kRank];
};

template <int kRank>
CUtensorMap tensor_map(const void* data, const MapShape<kRank>& shape) {
  static const auto encode = find_encoder();
  CUtensorMap map{};
  cuuint64_t stride_bytes[kRank - 1];
  cuuint32_t steps[kRank];
  std::fill_n(steps, kRank, 1u);
  for (int i = 0; i < kRank - 1; ++i)
    stride_bytes[i] = static_cast<cuuint64_t>(shape.strides[i]) * sizeof(__nv_bfloat16);
  const CUresult status =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, kRank, const_cast<void*>(data), shape.extents, stride_bytes,
             shape.box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw DeviceError(concat("[cross_attention] got CUDA driver error ", static_cast<int>(status),
                             " for a tensor map of ", shape.extents[kRank - 1], " rows with stride ",
                             shape.strides[kRank - 2], ", want success. Report this shape."));
  }
  return map;
}

CUtensorMap context_map(const ConstMatrix& matrix, std::int64_t tokens) {
  return tensor_map<2>(matrix.data, {.extents = {static_cast<cuuint64_t>(matrix.cols), static_cast<cuuint64_t>(tokens)},
                                     .strides = {matrix.stride},
                                     .box = {kernels::kPanelColumns, kernels::kFlashTokens}});
}

CUtensorMap query_map(const CrossAttentionParams& p, int group_heads) {
  return tensor_map<3>(p.q.data, {.extents = {static_cast<cuuint64_t>(p.head_dim), static_cast<cuuint64_t>(p.heads),
                                              static_cast<cuuint64_t>(p.rows_capacity)},
                                  .strides = {p.head_dim, p.q.stride},
                                  .box = {kernels::kPanelColumns, static_cast<cuuint32_t>(group_heads),
                                          static_cast<cuuint32_t>(kernels::rows_of_warpgroup(group_heads))}});
}

template <int kHeadDim>
void combine(Stream& stream, const CrossAttentionParams& p, const kernels::AttentionSplits& splits) {
  const std::int64_t queries = p.rows_capacity * p.heads;
  launch(stream, "cross_attention combine", kernels::combine_attention_splits<kHeadDim>,
         {.grid = dim3(blocks_for(queries, kernels::kCombineWarps)), .block = dim3(kernels::kCombineThreads)}, splits);
}

}  // namespace

void flash_cross_attention(Stream& stream, const CrossAttentionParams& p, const FlashPlan& plan) {
  if (plan.items == 0 || p.rows_capacity == 0) return;
  require(plan.items <= kernels::kMostAttentionItems, "[cross_attention] got ", plan.items,
          " tiles of queries, want at most ", kernels::kMostAttentionItems, ". Run fewer requests at once.");
  const bool shared = p.v.data == p.k.data && p.v.stride == p.k.stride;
  const int group_heads = static_cast<int>(p.heads / p.kv_heads);
  const CUtensorMap keys = context_map(p.k, p.tokens_capacity);
  const kernels::FlashAttentionMaps maps{.queries = query_map(p, group_heads),
                                         .keys = keys,
                                         .values = shared ? keys : context_map(p.v, p.tokens_capacity)};
  constexpr float kLog2E = 1.44269504088896340736f;
  const kernels::FlashAttentionArguments arguments{.schedule = {.requests = static_cast<int>(p.batch),
                                                                .groups = static_cast<int>(p.kv_heads),
                                                                .splits = plan.splits,
                                                                .row_tiles = static_cast<int>(plan.row_tiles),
                                                                .tile_rows = plan.tile_rows,
                                                                .items = static_cast<int>(plan.items)},
                                                   .out = static_cast<__nv_bfloat16*>(p.out.data),
                                                   .out_stride = p.out.stride,
                                                   .row_offsets = p.row_offsets,
                                                   .context_offsets = p.context_offsets,
                                                   .heads = static_cast<int>(p.heads),
                                                   .group_heads = group_heads,
                                                   .group_reciprocal = kernels::small_reciprocal(group_heads),
                                                   .scale_log2 = p.scale * kLog2E,
                                                   .rows_capacity = p.rows_capacity,
                                                   .split_sums = plan.sums,
                                                   .split_norms = reinterpret_cast<float2*>(plan.norms)};
  const auto run = p.head_dim == 64 ? launch_flash_head64 : launch_flash_head128;
  run(stream, plan.blocks, shared ? ContextTensors::kShared : ContextTensors::kSeparate, maps, arguments);
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
