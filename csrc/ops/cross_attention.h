// Lazy cross-attention: every row of a request attends to the request's one shared context.
#pragma once

#include "ops/context.h"
#include "ops/operand.h"

namespace onerec {

// For request b, its rows r in [row_offsets[b], row_offsets[b + 1]), head h and its group g = h / (heads / kv_heads):
// s[n] = scale * q[r, h] . k[n, g] over the context tokens n in [context_offsets[b], context_offsets[b + 1]),
// p = exp(s - max s), out[r, h] = sum_n round(p[n]) v[n, g] / sum_n p[n]; p is rounded to q's dtype. No tokens: out =
// 0. With `quantized` the codes of the rounded output are made as well, and what `out` holds afterwards is unspecified.
// A static scale is taken where the backend makes the codes with the output (Backend::fuses_cross_attention_codes).
struct CrossAttentionParams {
  ConstMatrix q = {};                             // [rows, heads * head_dim], FP32 or BF16
  ConstMatrix k = {};                             // [tokens, kv_heads * head_dim], q's dtype
  ConstMatrix v = {};                             // the same shape; may be k itself
  const std::int32_t* context_offsets = nullptr;  // [batch + 1], device
  const std::int32_t* row_offsets = nullptr;      // [batch + 1], device
  Matrix out = {};                                // [rows, heads * head_dim] of q's dtype
  Operand quantized = {};                         // the same shape, kPerRow; may be left out
  std::int64_t batch = 0;
  std::int64_t rows_capacity = 0;
  std::int64_t tokens_capacity = 0;   // of all requests together
  std::int64_t max_request_rows = 0;  // capacity of one request
  std::int64_t max_request_tokens = 0;
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  float scale = 0.0f;
  bool settled = false;  // k, v and the offsets were written ahead of an embed_step(): they may be read early
};

void cross_attention(OpContext& context, const CrossAttentionParams& params);

}  // namespace onerec
