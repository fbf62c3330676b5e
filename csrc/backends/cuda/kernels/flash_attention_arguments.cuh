// What the tensor-core cross-attention is called with. Free of CUTLASS, for the host code that fills it in.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace onerec::cuda::kernels {

enum class ContextTensors { kShared, kSeparate };  // keys are the values, or not

// Queries of a block, and tokens of a context tile (the rows of a tensor map's box, which has 64 columns).
inline constexpr int kFlashRows = 128;
inline constexpr int kFlashTokens = 128;
inline constexpr int kFlashBoxColumns = 64;

struct FlashAttentionArguments {
  const __nv_bfloat16* q = nullptr;  // aligned to 16 bytes, as is every row
  std::int64_t q_stride = 0;
  __nv_bfloat16* out = nullptr;  // likewise
  std::int64_t out_stride = 0;
  const std::int32_t* row_offsets = nullptr;      // [batch + 1]
  const std::int32_t* context_offsets = nullptr;  // [batch + 1]
  int heads = 0;
  int group_heads = 0;      // heads that share keys and values
  float scale_log2 = 0.0f;  // scale * log2(e), > 0
  // With several splits, `out` stays untouched and every split leaves what combine_attention_splits reads.
  int splits = 1;
  std::int64_t rows_capacity = 0;
  float* split_sums = nullptr;    // [splits, rows, heads, head_dim]
  float2* split_norms = nullptr;  // [splits, rows, heads]: log2 of the factor taken out of the sums, and the
                                  // denominator, -1 where the split had no tokens
};

}  // namespace onerec::cuda::kernels
