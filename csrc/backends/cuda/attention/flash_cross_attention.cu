#include "backends/cuda/attention/flash_cross_attention.h"

#include <algorithm>

#include "backends/cuda/attention/flash_instances.h"
#include "backends/cuda/cuda_tensor_map.h"
#include "backends/cuda/kernels/combine_attention_splits.cuh"
#include "backends/cuda/launch.h"
#include "backends/cuda/row_launch.h"

namespace onerec::cuda {
namespace {

using kernels::ContextTensors;

constexpr const char* kName = "cross_attention";

ContextTensors context_tensors(const CrossAttentionParams& p) {
  if (p.coded()) return ContextTensors::kCodes;
  return p.v.data == p.k.data && p.v.stride == p.k.stride ? ContextTensors::kShared : ContextTensors::kSeparate;
}

CUtensorMap context_map(const ConstMatrix& matrix, std::int64_t tokens, int tile_tokens) {
  return encode_tensor_map(kName, {.data = matrix.data,
                                   .dimensions = 2,
                                   .extents = {matrix.cols, tokens},
                                   .strides = {matrix.stride},
                                   .box = {kernels::kPanelColumns, tile_tokens}});
}

// Keys and values as they are read; the scales of what they stand for.
struct ContextMaps {
  ContextTensors tensors;
  CUtensorMap keys;
  CUtensorMap values;
  float key_scale = 1.0f;
  float value_scale = 1.0f;
};

ContextMaps context_maps(const CrossAttentionParams& p) {
  const ContextTensors tensors = context_tensors(p);
  const int tile_tokens = kernels::tokens_of_tile(tensors);
  if (tensors != ContextTensors::kCodes) {
    const bool shared = tensors == ContextTensors::kShared;
    const CUtensorMap keys = context_map(p.k, p.tokens_capacity, tile_tokens);
    return {.tensors = tensors,
            .keys = keys,
            .values = shared ? keys : context_map(p.v, p.tokens_capacity, tile_tokens)};
  }
  const Matrix& keys = p.codes.keys;
  const Matrix& values = p.codes.values;
  return {.tensors = tensors,
          .keys = encode_tensor_map(kName, {.data = keys.data,
                                            .dtype = DType::kE4M3,
                                            .dimensions = 2,
                                            .extents = {keys.cols, p.tokens_capacity},
                                            .strides = {keys.stride},
                                            .box = {p.head_dim, tile_tokens}}),
          .values = encode_tensor_map(kName, {.data = values.data,
                                              .dtype = DType::kE4M3,
                                              .dimensions = 2,
                                              .extents = {value_columns(p.tokens_capacity, p.batch), values.rows},
                                              .strides = {values.stride},
                                              .box = {kernels::kGroupTokens, p.head_dim}}),
          .key_scale = p.codes.key_scale,
          .value_scale = p.codes.value_scale};
}

CUtensorMap query_map(const CrossAttentionParams& p, int group_heads) {
  return encode_tensor_map(kName,
                           {.data = p.q.data,
                            .dimensions = 3,
                            .extents = {p.head_dim, p.heads, p.rows_capacity},
                            .strides = {p.head_dim, p.q.stride},
                            .box = {kernels::kPanelColumns, group_heads, kernels::rows_of_warpgroup(group_heads)}});
}

void combine(Stream& stream, const CrossAttentionParams& p, const FlashPlan& plan) {
  const kernels::AttentionSplits splits{.sums = plan.sums,
                                        .norms = reinterpret_cast<const float2*>(plan.norms),
                                        .splits = plan.splits,
                                        .rows_capacity = p.rows_capacity,
                                        .heads = static_cast<int>(p.heads),
                                        .rows_end = p.row_offsets + p.batch,
                                        .out = static_cast<kernels::bf16*>(p.out.data),
                                        .out_stride = p.out.stride,
                                        .quantized = code_rows(p.quantized)};
  const std::int64_t vectors = p.heads * p.head_dim / kernels::kVector<kernels::bf16>;
  const auto threads = static_cast<unsigned>(std::min<std::int64_t>(
      (vectors + kernels::kWarp - 1) / kernels::kWarp * kernels::kWarp, kernels::kMostCombineThreads));
  const auto kernel = p.head_dim == 64 ? kernels::combine_attention_splits<64> : kernels::combine_attention_splits<128>;
  launch(stream, "cross_attention combine", kernel,
         {.grid = dim3(static_cast<unsigned>(p.rows_capacity), blocks_for(vectors, threads)), .block = dim3(threads)},
         splits);
}

}  // namespace

void flash_cross_attention(Stream& stream, const CrossAttentionParams& p, const FlashPlan& plan) {
  if (plan.items == 0 || p.rows_capacity == 0) return;
  require(plan.items <= kernels::kMostAttentionItems, "[cross_attention] got ", plan.items,
          " tiles of queries, want at most ", kernels::kMostAttentionItems, ". Run fewer requests at once.");
  const int group_heads = static_cast<int>(p.heads / p.kv_heads);
  const ContextMaps context = context_maps(p);
  const kernels::FlashAttentionMaps maps{
      .queries = query_map(p, group_heads), .keys = context.keys, .values = context.values};
  constexpr float kLog2E = 1.44269504088896340736f;
  const kernels::FlashAttentionArguments arguments{
      .schedule = {.requests = static_cast<int>(p.batch),
                   .groups = static_cast<int>(p.kv_heads),
                   .splits = plan.splits,
                   .row_tiles = static_cast<int>(plan.row_tiles),
                   .warpgroup_rows = kernels::rows_of_warpgroup(group_heads),
                   .tile_rows = plan.tile_rows,
                   .tile_tokens = kernels::tokens_of_tile(context.tensors),
                   .items = static_cast<int>(plan.items)},
      .out = static_cast<__nv_bfloat16*>(p.out.data),
      .out_stride = p.out.stride,
      .row_offsets = p.row_offsets,
      .context_offsets = p.context_offsets,
      .heads = static_cast<int>(p.heads),
      .group_heads = group_heads,
      .group_reciprocal = kernels::small_reciprocal(group_heads),
      .scale_log2 = p.scale * kLog2E * context.key_scale,
      .value_scale = context.value_scale,
      .rows_capacity = p.rows_capacity,
      .split_sums = plan.sums,
      .split_norms = reinterpret_cast<float2*>(plan.norms)};
  const auto run = p.head_dim == 64 ? launch_flash_head64 : launch_flash_head128;
  run(stream, plan.blocks, context.tensors, maps, arguments);
  if (plan.splits > 1) combine(stream, p, plan);
}

}  // namespace onerec::cuda
