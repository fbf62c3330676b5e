#include "ops/cross_attention.h"

#include "core/error.h"
#include "ops/backend.h"
#include "ops/checks.h"
#include "ops/quantize.h"

namespace onerec {
namespace {

constexpr const char* kOp = "cross_attention";

void check_heads(const CrossAttentionParams& p) {
  check_at_least(kOp, "heads", p.heads, 1);
  check_at_least(kOp, "kv_heads", p.kv_heads, 1);
  check_at_least(kOp, "head_dim", p.head_dim, 1);
  require(p.heads % p.kv_heads == 0, "[cross_attention] got ", p.heads, " heads over ", p.kv_heads,
          " kv_heads, want a multiple. Correct the head counts.");
}

void check_capacities(const CrossAttentionParams& p) {
  check_at_least(kOp, "batch", p.batch, 0);
  check_at_least(kOp, "rows_capacity", p.rows_capacity, 0);
  check_at_least(kOp, "tokens_capacity", p.tokens_capacity, 0);
  check_at_least(kOp, "max_request_rows", p.max_request_rows, 0);
  check_at_least(kOp, "max_request_tokens", p.max_request_tokens, 0);
}

}  // namespace

void cross_attention(OpContext& context, const CrossAttentionParams& params) {
  check_heads(params);
  check_capacities(params);
  const std::int64_t q_width = params.heads * params.head_dim;
  const std::int64_t kv_width = params.kv_heads * params.head_dim;
  check_matrix(kOp, "q", params.q, {DType::kF32, DType::kBF16}, params.rows_capacity, q_width);
  check_matrix(kOp, "k", params.k, {params.q.dtype}, params.tokens_capacity, kv_width);
  check_matrix(kOp, "v", params.v, {params.q.dtype}, params.tokens_capacity, kv_width);
  check_matrix(kOp, "out", params.out, {params.q.dtype}, params.rows_capacity, q_width);
  check_pointer(kOp, "context_offsets", params.context_offsets);
  check_pointer(kOp, "row_offsets", params.row_offsets);
  check_apart(context, kOp, "out", params.out, "q", params.q, params.rows_capacity);

  Backend& backend = context.backend;
  if (params.quantized.values.data != nullptr) {
    check_quantized(kOp, "quantized", params.quantized, ScaleKind::kPerRow, params.rows_capacity, q_width);
    check_apart(context, kOp, "quantized", params.quantized.values, "q", params.q, params.rows_capacity);
    check_apart(context, kOp, "quantized", params.quantized.values, "out", params.out, params.rows_capacity);
    // Addresses may decide what can be fused, and those of a measuring pass are not the real ones: it measures the
    // parts.
    if (context.measuring || !context.fused || !backend.fuses_cross_attention_codes(params)) {
      CrossAttentionParams plain = params;
      plain.quantized = {};
      cross_attention(context, plain);
      const Extent rows{params.rows_capacity, params.row_offsets + params.batch};
      return quantize(context, {.x = params.out, .quantized = params.quantized, .rows = rows});
    }
  }
  if (!workspace_ready(context, kOp, backend.cross_attention_workspace(params))) return;
  backend.cross_attention(context.stream, params, context.workspace);
}

}  // namespace onerec
