// What the tensor-core cross-attention is called with. Free of CUTLASS, for the host code that fills it in.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>

#include <cstdint>

#include "backends/cuda/kernels/attention_layout.cuh"
#include "backends/cuda/kernels/attention_tensors.cuh"

namespace onerec::cuda::kernels {

// Tensor maps, in boxes of 64 columns with the 128-byte swizzle. Keys and values: [tokens, groups * head_dim], boxes of
// tokens_of_tile() rows; the same map if the values are the keys. Queries: [rows, heads, head_dim], boxes of
// rows_of_warpgroup(group_heads) rows and group_heads heads.
struct FlashAttentionMaps {
  CUtensorMap queries;
  CUtensorMap keys;
  CUtensorMap values;
};

struct FlashAttentionArguments {
  AttentionSchedule schedule;
  __nv_bfloat16* out = nullptr;  // aligned to 16 bytes, as is every row
  std::int64_t out_stride = 0;
  StaticCodes codes = {};                         // aligned to 8 bytes, as is every row
  const std::int32_t* row_offsets = nullptr;      // [batch + 1]
  const std::int32_t* context_offsets = nullptr;  // [batch + 1]
  int heads = 0;
  int group_heads = 0;  // heads that share keys and values
  std::uint32_t group_reciprocal = 0;
  float scale_log2 = 0.0f;  // scale * log2(e), > 0
  bool settled = false;     // all but the queries may be read before the previous kernel has ended
  // With several splits that are not paired, `out` stays untouched, there are no codes, and every split leaves what
  // combine_attention_splits reads. Else these are null.
  std::int64_t rows_capacity = 0;
  float* split_sums = nullptr;    // [splits, rows, heads, head_dim]
  float2* split_norms = nullptr;  // [splits, rows, heads]: log2 of the factor taken out of the sums, and the
                                  // denominator, -1 where the split had no tokens
};

}  // namespace onerec::cuda::kernels
