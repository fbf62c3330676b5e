#include "ops/rms_norm.h"

#include <limits>

#include "core/error.h"
#include "ops/backend.h"
#include "ops/checks.h"

namespace onerec {
namespace {

constexpr const char* kOp = "rms_norm";

void check_codes(const OpContext& context, const RmsNormParams& p, const char* name, const Operand& operand,
                 std::int64_t rows) {
  const Matrix& codes = operand.values;
  if (codes.data == nullptr) return;
  require(p.groups == 1, "[rms_norm] got ", p.groups,
          " groups with quantized output, want 1. Quantise in a second step.");
  check_quantized(kOp, name, operand, rows, p.width);
  check_apart(context, kOp, "x", p.x, name, codes, rows);
  if (p.y.data != nullptr) check_apart(context, kOp, "y", p.y, name, codes, rows);
}

void check(const OpContext& context, const RmsNormParams& p) {
  check_at_least(kOp, "width", p.width, 1);
  check_at_least(kOp, "groups", p.groups, 1);
  check_extent(kOp, "rows", p.rows);
  require(p.eps >= 0.0f, "[rms_norm] got eps = ", p.eps,
          ", want a number that is not negative. Correct the configuration.");
  check_pointer(kOp, "gamma", p.gamma);
  const std::int64_t rows = p.rows.capacity;
  const std::int64_t cols = p.groups * p.width;
  check_matrix(kOp, "x", p.x, {DType::kF32, DType::kBF16}, rows, cols);
  const Matrix& codes = p.quantized.values;
  require(p.y.data != nullptr || codes.data != nullptr || rows == 0,
          "[rms_norm] got neither y nor quantized, want at least one output. Pass its address.");
  if (p.y.data != nullptr) {
    check_matrix(kOp, "y", p.y, {DType::kF32, DType::kBF16}, rows, cols);
    check_same_or_apart(context, kOp, "x", p.x, "y", p.y, rows);
  }
  check_codes(context, p, "quantized", p.quantized, rows);
  const bool bounded = p.gamma_magnitude >= 0.0f && p.gamma_magnitude < std::numeric_limits<float>::infinity();
  require(codes.data == nullptr || p.quantized.scale_kind != ScaleKind::kPerRow || bounded,
          "[rms_norm] got gamma_magnitude = ", p.gamma_magnitude,
          " for codes per row, want the largest magnitude of gamma, a finite one. Correct the norm's weight.");
  if (p.quantized_blocks.values.data == nullptr) return;
  require(codes.data != nullptr && p.quantized.scale_kind == ScaleKind::kPerRow,
          "[rms_norm] got quantized_blocks without codes per row in quantized, want both. Pass a single kind as "
          "quantized.");
  check_quantized(kOp, "quantized_blocks", p.quantized_blocks, ScaleKind::kPerBlock, rows, cols);
  check_codes(context, p, "quantized_blocks", p.quantized_blocks, rows);
  check_apart(context, kOp, "quantized", codes, "quantized_blocks", p.quantized_blocks.values, rows);
}

}  // namespace

void check_norm_of(const char* op, const RmsNormParams& norm, const ConstMatrix& x, const Extent& rows) {
  require(norm.x.data == x.data && norm.x.stride == x.stride && norm.x.dtype == x.dtype && norm.x.cols == x.cols, "[",
          op, "] got a norm that does not read what is made, want it to. Pass the same matrix.");
  require(norm.rows.capacity == rows.capacity && norm.rows.count == rows.count, "[", op, "] got a norm of ",
          norm.rows.capacity, " rows behind ", rows.capacity, ", want the same rows. Pass the same extent.");
  require(norm.groups == 1, "[", op, "] got a norm of ", norm.groups, " groups, want 1. Call rms_norm() for more.");
}

void check_norm_apart(const OpContext& context, const char* op, const RmsNormParams& norm, const char* name,
                      const ConstMatrix& other) {
  if (other.data == nullptr) return;
  const std::int64_t rows = norm.rows.capacity;
  for (const Matrix& written : {norm.y, norm.quantized.values, norm.quantized_blocks.values}) {
    if (written.data != nullptr) check_apart(context, op, name, other, "what the norm writes", written, rows);
  }
}

void rms_norm(OpContext& context, const RmsNormParams& params) {
  check(context, params);
  if (workspace_ready(context, kOp, 0)) context.backend.rms_norm(context.stream, params);
}

}  // namespace onerec
