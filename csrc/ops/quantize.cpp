#include "ops/quantize.h"

#include "ops/backend.h"
#include "ops/checks.h"

namespace onerec {
namespace {

constexpr const char* kOp = "quantize";

void check(const OpContext& context, const QuantizeParams& p) {
  check_extent(kOp, "rows", p.rows);
  check_at_least(kOp, "columns", p.x.cols, 1);
  const std::int64_t rows = p.rows.capacity;
  check_matrix(kOp, "x", p.x, {DType::kF32, DType::kBF16}, rows, p.x.cols);
  check_quantized(kOp, "quantized", p.quantized, rows, p.x.cols);
  check_apart(context, kOp, "x", p.x, "quantized", p.quantized.values, rows);
}

}  // namespace

void quantize(OpContext& context, const QuantizeParams& params) {
  check(context, params);
  if (workspace_ready(context, kOp, 0)) context.backend.quantize(context.stream, params);
}

}  // namespace onerec
