#include "ops/context_codes.h"

#include <cmath>

#include "core/error.h"
#include "ops/backend.h"
#include "ops/checks.h"

namespace onerec {
namespace {

constexpr const char* kOp = "quantize_context";
// Kernels read codes in vectors of this many.
constexpr std::int64_t kVector = 16;

void check_stride(const char* op, const char* name, const ConstMatrix& codes) {
  require(codes.stride % kVector == 0, "[", op, "] got ", name, " with stride ", codes.stride, ", want a multiple of ",
          kVector, ". Pad the rows.");
}

void check_scale(const char* op, const char* name, float scale) {
  require(std::isfinite(scale) && scale > 0.0f, "[", op, "] got ", name, " = ", scale,
          ", want a positive number. Correct the scale.");
}

void check(const OpContext& context, const QuantizeContextParams& p) {
  check_at_least(kOp, "batch", p.batch, 0);
  check_at_least(kOp, "tokens_capacity", p.tokens_capacity, 0);
  check_at_least(kOp, "columns", p.k.cols, 1);
  check_pointer(kOp, "context_offsets", p.context_offsets);
  const std::int64_t tokens = p.tokens_capacity;
  const std::int64_t width = p.k.cols;
  check_matrix(kOp, "k", p.k, {DType::kF32, DType::kBF16}, tokens, width);
  check_matrix(kOp, "v", p.v, {p.k.dtype}, tokens, width);
  check_context_codes(kOp, p.codes, tokens, p.batch, width);
  const Matrix& keys = p.codes.keys;
  const Matrix& values = p.codes.values;
  check_apart(context, kOp, "k", p.k, "codes.keys", keys, tokens);
  check_apart(context, kOp, "v", p.v, "codes.keys", keys, tokens);
  check_apart(context, kOp, "k", p.k, tokens, "codes.values", values, width);
  check_apart(context, kOp, "v", p.v, tokens, "codes.values", values, width);
  check_apart(context, kOp, "codes.keys", keys, tokens, "codes.values", values, width);
}

}  // namespace

void check_context_codes(const char* op, const ContextCodes& codes, std::int64_t tokens, std::int64_t batch,
                         std::int64_t width) {
  check_matrix(op, "codes.keys", codes.keys, {DType::kE4M3}, tokens, width);
  check_matrix(op, "codes.values", codes.values, {DType::kE4M3}, width, value_columns(tokens, batch));
  check_stride(op, "codes.keys", codes.keys);
  check_stride(op, "codes.values", codes.values);
  check_scale(op, "codes.key_scale", codes.key_scale);
  check_scale(op, "codes.value_scale", codes.value_scale);
}

void quantize_context(OpContext& context, const QuantizeContextParams& params) {
  check(context, params);
  if (workspace_ready(context, kOp, 0)) context.backend.quantize_context(context.stream, params);
}

void Backend::quantize_context(Stream&, const QuantizeContextParams&) {
  throw InternalError(
      "[quantize_context] got a backend that has no such kernel, want none of its codes. Ask "
      "check_context_codes() first.");
}

void Backend::check_context_codes(std::int64_t, std::int64_t, std::int64_t) const {
  throw ArgumentError(
      "[context_codes] got a backend that has no kernels for keys and values of the context in FP8, "
      "want one that has. Open the model with kv_cache_dtype='auto', or on the CPU.");
}

}  // namespace onerec
