#include "ops/self_attention.h"

#include "core/error.h"
#include "ops/backend.h"
#include "ops/checks.h"

namespace onerec {

void self_attention(OpContext& context, const SelfAttentionParams& params) {
  constexpr const char* kOp = "self_attention";
  require(params.step >= 0 && params.step < kMaxLevels, "[self_attention] got step ", params.step, ", want 0 to ",
          kMaxLevels - 1, ". Shorten the semantic id.");
  check_at_least(kOp, "heads", params.heads, 1);
  check_at_least(kOp, "kv_heads", params.kv_heads, 1);
  check_at_least(kOp, "head_dim", params.head_dim, 1);
  require(params.heads % params.kv_heads == 0, "[self_attention] got ", params.heads, " heads over ", params.kv_heads,
          " kv_heads, want a multiple. Correct the head counts.");
  check_extent(kOp, "rows", params.rows);

  const auto step = static_cast<std::size_t>(params.step);
  const ConstMatrix& own = params.qkv[step];
  const std::int64_t width = (params.heads + 2 * params.kv_heads) * params.head_dim;
  check_matrix(kOp, "qkv of the current step", own, {DType::kF32, DType::kBF16}, params.rows.capacity, width);
  for (std::size_t s = 0; s < step; ++s) {
    check_matrix(kOp, "qkv of an earlier step", params.qkv[s], {own.dtype}, 0, width);
    if (params.rows.capacity == 0) continue;
    check_pointer(kOp, "qkv of an earlier step", params.qkv[s].data);
    check_pointer(kOp, "ancestry", params.ancestry[s]);
  }
  const std::int64_t out_width = params.heads * params.head_dim;
  const std::int64_t rows = params.rows.capacity;
  const bool plain = params.out.data != nullptr;
  const bool coded = params.quantized.values.data != nullptr;
  require(!(plain && coded),
          "[self_attention] got both out and quantized, want one of them. Leave the other's data null.");
  require(plain || coded || rows == 0,
          "[self_attention] got neither out nor quantized, want one of them. Pass its address.");
  if (plain) {
    check_matrix(kOp, "out", params.out, {own.dtype}, rows, out_width);
    check_apart(context, kOp, "out", params.out, "qkv", own, rows);
  }
  if (coded) {
    check_quantized(kOp, "quantized", params.quantized, ScaleKind::kPerRow, rows, out_width);
    check_apart(context, kOp, "quantized", params.quantized.values, "qkv", own, rows);
  }

  if (!workspace_ready(context, kOp, 0)) return;
  context.backend.self_attention(context.stream, params);
}

}  // namespace onerec
