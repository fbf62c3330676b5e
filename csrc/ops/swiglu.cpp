#include "ops/swiglu.h"

#include "core/error.h"
#include "ops/backend.h"
#include "ops/checks.h"

namespace onerec {
namespace {

constexpr const char* kOp = "swiglu";

void check(const OpContext& context, const SwigluParams& p) {
  check_at_least(kOp, "width", p.width, 1);
  check_extent(kOp, "rows", p.rows);
  const std::int64_t rows = p.rows.capacity;
  check_matrix(kOp, "gate_up", p.gate_up, {DType::kF32, DType::kBF16}, rows, 2 * p.width);
  const bool plain = p.y.data != nullptr;
  const bool coded = p.quantized.values.data != nullptr;
  require(!(plain && coded), "[swiglu] got both y and quantized, want one of them. Leave the other's data null.");
  require(plain || coded || rows == 0, "[swiglu] got neither y nor quantized, want one of them. Pass its address.");
  if (plain) {
    check_matrix(kOp, "y", p.y, {p.gate_up.dtype}, rows, p.width);
    check_apart(context, kOp, "gate_up", p.gate_up, "y", p.y, rows);
  }
  if (coded) {
    check_quantized(kOp, "quantized", p.quantized, rows, p.width);
    check_apart(context, kOp, "gate_up", p.gate_up, "quantized", p.quantized.values, rows);
  }
}

}  // namespace

void swiglu(OpContext& context, const SwigluParams& params) {
  check(context, params);
  if (workspace_ready(context, kOp, 0)) context.backend.swiglu(context.stream, params);
}

}  // namespace onerec
