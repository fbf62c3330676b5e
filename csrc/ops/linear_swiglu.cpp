#include "ops/linear_swiglu.h"

#include "core/error.h"
#include "ops/backend.h"
#include "ops/checks.h"
#include "ops/tap.h"

namespace onerec {
namespace {

constexpr const char* kOp = "linear_swiglu";

void check(const OpContext& context, const LinearSwigluParams& p) {
  check_pointer(kOp, "weight", p.weight);
  check_at_least(kOp, "width", p.width, 1);
  check_extent(kOp, "rows", p.rows);
  const std::int64_t rows = p.rows.capacity;
  require(p.weight->experts == 1, "[linear_swiglu] got the weight '", p.weight->name, "' of ", p.weight->experts,
          " experts, want 1. Call grouped_swiglu().");
  require(p.weight->outputs == 2 * p.width, "[linear_swiglu] got the weight '", p.weight->name, "' of ",
          p.weight->outputs, " outputs, want ", 2 * p.width, ", twice the width. Stack gates and ups.");
  check_linear_input(kOp, p.x, *p.weight, rows);
  check_matrix(kOp, "gate_up", p.gate_up, {DType::kF32, DType::kBF16}, rows, 2 * p.width);
  check_apart(context, kOp, "x", p.x.values, "gate_up", p.gate_up, rows);
  const bool plain = p.y.data != nullptr;
  const bool coded = p.quantized.values.data != nullptr;
  require(!(plain && coded),
          "[linear_swiglu] got both y and quantized, want one of them. Leave the other's data null.");
  require(plain || coded || rows == 0,
          "[linear_swiglu] got neither y nor quantized, want one of them. Pass its address.");
  if (plain) {
    check_matrix(kOp, "y", p.y, {p.gate_up.dtype}, rows, p.width);
    check_apart(context, kOp, "x", p.x.values, "y", p.y, rows);
    check_apart(context, kOp, "gate_up", p.gate_up, "y", p.y, rows);
  }
  if (coded) {
    check_quantized(kOp, "quantized", p.quantized, rows, p.width);
    check_apart(context, kOp, "x", p.x.values, "quantized", p.quantized.values, rows);
    check_apart(context, kOp, "gate_up", p.gate_up, "quantized", p.quantized.values, rows);
  }
}

}  // namespace

void linear_swiglu(OpContext& context, const LinearSwigluParams& params) {
  check(context, params);
  // Addresses may decide what can be fused, and those of a measuring pass are not the real ones: it measures both ways.
  const bool ready = workspace_ready(context, kOp, context.backend.linear_swiglu_workspace(params));
  if (ready && context.fused && context.backend.fuses_linear_swiglu(params)) {
    observe(context, params.weight->name, params.x, params.rows);
    return context.backend.linear_swiglu(context.stream, params, context.workspace);
  }
  linear(context,
         {.x = params.x, .weight = params.weight, .bias = params.bias, .y = params.gate_up, .rows = params.rows});
  swiglu(context, {.gate_up = params.gate_up,
                   .width = params.width,
                   .y = params.y,
                   .quantized = params.quantized,
                   .rows = params.rows});
}

void Backend::linear_swiglu(Stream&, const LinearSwigluParams&, Workspace) { refuse_kernel(kOp); }

}  // namespace onerec
