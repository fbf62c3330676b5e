// E4M3 codes of a context's keys and values, for a cross-attention in FP8; the formulas are in docs/numerics.md.
#pragma once

#include "ops/context.h"
#include "ops/context_tokens.h"
#include "ops/operand.h"

namespace onerec {

// k = key_scale * code and v = value_scale * code: one scale for all tokens and heads, known before there are any.
struct ContextCodes {
  Matrix keys = {};    // [tokens, kv_heads * head_dim]
  Matrix values = {};  // [kv_heads * head_dim, value_columns(tokens, batch)]: transposed, see ops/context_tokens.h
  float key_scale = 1.0f;
  float value_scale = 1.0f;
};

// Keys: code = e4m3(k * (1 / key_scale)); values the same with value_scale. The columns of values behind a request's
// last token, up to a whole group, become 0; what lies behind them is left as it is.
struct QuantizeContextParams {
  ConstMatrix k = {};                             // [tokens, kv_heads * head_dim], FP32 or BF16
  ConstMatrix v = {};                             // the same shape and dtype; may be k itself
  const std::int32_t* context_offsets = nullptr;  // [batch + 1], device
  std::int64_t batch = 0;
  std::int64_t tokens_capacity = 0;  // of all requests together
  ContextCodes codes = {};
};

void quantize_context(OpContext& context, const QuantizeContextParams& params);

// `codes` hold `tokens` tokens of `batch` requests, `width` columns each, where kernels can read them.
void check_context_codes(const char* op, const ContextCodes& codes, std::int64_t tokens, std::int64_t batch,
                         std::int64_t width);

}  // namespace onerec
