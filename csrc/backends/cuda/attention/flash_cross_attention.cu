#include "backends/cuda/attention/flash_cross_attention.h"

#include <algorithm>

#include "backends/cuda/attention/flash_instances.h"
#include "backends/cuda/attention_tensors.h"
#include "backends/cuda/cuda_tensor_map.h"
#include "backends/cuda/kernels/combine_attention_splits.cuh"
#include "backends/cuda/launch.h"
#include "backends/cuda/row_launch.h"

namespace onerec::cuda {
namespace {

using kernels::ContextTensors;

constexpr const char* kName = "cross_attention";

CUtensorMap context_map(const ConstMatrix& matrix, std::int64_t tokens, int tile_tokens) {
  return encode_tensor_map(kName, {.data = matrix.data,
                                   .dimensions = 2,
                                   .extents = {matrix.cols, tokens},
                                   .strides = {matrix.stride},
                                   .box = {kernels::kPanelColumns, tile_tokens}});
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
                                        .quantized = code_rows(p.quantized),
                                        .static_scale = p.quantized.static_scale};
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
  const bool shared = p.v.data == p.k.data && p.v.stride == p.k.stride;
  const int group_heads = static_cast<int>(p.heads / p.kv_heads);
  const int tile_tokens = kernels::tokens_of_tile(static_cast<int>(p.head_dim), shared);
  const CUtensorMap keys = context_map(p.k, p.tokens_capacity, tile_tokens);
  const kernels::FlashAttentionMaps maps{.queries = query_map(p, group_heads),
                                         .keys = keys,
                                         .values = shared ? keys : context_map(p.v, p.tokens_capacity, tile_tokens)};
  constexpr float kLog2E = 1.44269504088896340736f;
  const kernels::FlashAttentionArguments arguments{
      .schedule = {.requests = static_cast<int>(p.batch),
                   .groups = static_cast<int>(p.kv_heads),
                   .splits = plan.splits,
                   .paired = plan.paired,
                   .row_tiles = static_cast<int>(plan.row_tiles),
                   .warpgroup_rows = kernels::rows_of_warpgroup(group_heads),
                   .tile_rows = plan.tile_rows,
                   .tile_tokens = tile_tokens,
                   .items = static_cast<int>(plan.items)},
      .out = static_cast<__nv_bfloat16*>(p.out.data),
      .out_stride = p.out.stride,
      .codes = plan.combined() ? kernels::StaticCodes{} : static_codes(p.quantized),
      .row_offsets = p.row_offsets,
      .context_offsets = p.context_offsets,
      .heads = static_cast<int>(p.heads),
      .group_heads = group_heads,
      .group_reciprocal = kernels::small_reciprocal(group_heads),
      .scale_log2 = p.scale * kLog2E,
      .settled = p.settled,
      .rows_capacity = p.rows_capacity,
      .split_sums = plan.sums,
      .split_norms = reinterpret_cast<float2*>(plan.norms)};
  if (plan.whole && shared) {
    const auto run = p.head_dim == 64 ? launch_short_head64 : launch_short_head128;
    return run(stream, maps, arguments);
  }
  const auto run = p.head_dim == 64 ? launch_flash_head64 : launch_flash_head128;
  run(stream, plan.blocks, shared ? ContextTensors::kShared : ContextTensors::kSeparate, maps, arguments);
  if (plan.combined()) combine(stream, p, plan);
}

}  // namespace onerec::cuda
