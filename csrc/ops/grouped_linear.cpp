#include "ops/grouped_linear.h"

#include "core/error.h"
#include "ops/backend.h"
#include "ops/checks.h"
#include "ops/tap.h"

namespace onerec {
namespace {

constexpr const char* kOp = "grouped_linear";

void check(const OpContext& context, const GroupedLinearParams& p) {
  check_pointer(kOp, "weight", p.weight);
  check_at_least(kOp, "rows_capacity", p.rows_capacity, 0);
  check_at_least(kOp, "alignment", p.alignment, 1);
  require(p.rows_capacity % p.alignment == 0, "[grouped_linear] got rows_capacity = ", p.rows_capacity,
          ", want a multiple of ", p.alignment, ", the alignment. Take it from sorted_capacity().");
  check_pointer(kOp, "offsets", p.offsets);
  check_linear_input(kOp, p.x, *p.weight, p.rows_capacity);
  check_matrix(kOp, "y", p.y, {DType::kF32, DType::kBF16}, p.rows_capacity, p.weight->outputs);
  check_apart(context, kOp, "x", p.x.values, "y", p.y, p.rows_capacity);
}

}  // namespace

void grouped_linear(OpContext& context, const GroupedLinearParams& params) {
  check(context, params);
  if (!workspace_ready(context, kOp, context.backend.grouped_linear_workspace(params))) return;
  observe(context, params.weight->name, params.x, {params.rows_capacity, params.offsets + params.weight->experts});
  context.backend.grouped_linear(context.stream, params, context.workspace);
}

}  // namespace onerec
