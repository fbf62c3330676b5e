#include "ops/linear.h"

#include <algorithm>

#include "core/error.h"
#include "ops/backend.h"
#include "ops/checks.h"
#include "ops/tap.h"

namespace onerec {
namespace {

constexpr const char* kOp = "linear";

void check(const OpContext& context, const LinearParams& p) {
  check_pointer(kOp, "weight", p.weight);
  const LinearWeight& weight = *p.weight;
  require(weight.experts == 1, "[linear] got weight '", weight.name, "' of ", weight.experts,
          " experts, want a single matrix. Use grouped_linear.");
  require(weight.format != WeightFormat::kFp8Block, "[linear] got weight '", weight.name,
          "' with block scales, want dense values or channel scales. Use grouped_linear.");
  check_extent(kOp, "rows", p.rows);
  const std::int64_t rows = p.rows.capacity;
  check_linear_input(kOp, p.x, weight, rows);
  check_matrix(kOp, "y", p.y, {DType::kF32, DType::kBF16}, rows, weight.outputs);
  require(p.unread >= 0 && p.unread < std::max<std::int64_t>(weight.outputs, 1), "[linear] got ", p.unread,
          " unread columns of ", weight.outputs, ", want fewer. Leave a product out that nobody reads.");
  check_apart(context, kOp, "x", p.x.values, "y", p.y, rows);
  if (p.residual.data == nullptr) return;
  check_matrix(kOp, "residual", p.residual, {p.y.dtype}, rows, weight.outputs);
  check_apart(context, kOp, "x", p.x.values, "residual", p.residual, rows);
  check_same_or_apart(context, kOp, "residual", p.residual, "y", p.y, rows);
}

}  // namespace

void LinearWeight::describe(const LinearWeightSource& source) {
  name = source.name;
  experts = source.experts;
  outputs = source.outputs;
  inputs = source.inputs;
  format = source.format;
  dtype = source.dtype;
}

void check_packable(const LinearWeightSource& source, const std::string& reason) {
  require(reason.empty(), "[pack_linear] ", reason, ". Use another precision or another backend.");
  require(source.values != nullptr, "[pack_linear] got no values for '", source.name,
          "', want an array. Pass its address.");
  require(source.format == WeightFormat::kDense || source.scales != nullptr, "[pack_linear] got no scales for '",
          source.name, "', want those of its codes. Pass their address.");
}

void linear(OpContext& context, const LinearParams& params) {
  check(context, params);
  if (!workspace_ready(context, kOp, context.backend.linear_workspace(params))) return;
  observe(context, params.weight->name, params.x, params.rows);
  context.backend.linear(context.stream, params, context.workspace);
}

}  // namespace onerec
