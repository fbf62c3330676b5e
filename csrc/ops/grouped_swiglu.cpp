#include "ops/grouped_swiglu.h"

#include "core/error.h"
#include "ops/backend.h"
#include "ops/checks.h"
#include "ops/tap.h"

namespace onerec {
namespace {

constexpr const char* kOp = "grouped_swiglu";

void check(const OpContext& context, const GroupedSwigluParams& p) {
  check_pointer(kOp, "weight", p.weight);
  check_at_least(kOp, "width", p.width, 1);
  check_at_least(kOp, "rows_capacity", p.rows_capacity, 0);
  check_at_least(kOp, "alignment", p.alignment, 1);
  require(p.rows_capacity % p.alignment == 0, "[grouped_swiglu] got rows_capacity = ", p.rows_capacity,
          ", want a multiple of ", p.alignment, ", the alignment. Take it from sorted_capacity().");
  require(p.weight->format == WeightFormat::kFp8Block, "[grouped_swiglu] got the weight '", p.weight->name,
          "' without scales of blocks, want kFp8Block. Call grouped_linear() and swiglu().");
  require(p.weight->outputs == 2 * p.width, "[grouped_swiglu] got the weight '", p.weight->name, "' of ",
          p.weight->outputs, " outputs, want ", 2 * p.width, ", twice the width. Stack gates and ups.");
  check_pointer(kOp, "offsets", p.offsets);
  check_linear_input(kOp, p.x, *p.weight, p.rows_capacity);
  check_matrix(kOp, "gate_up", p.gate_up, {DType::kF32, DType::kBF16}, p.rows_capacity, 2 * p.width);
  check_quantized(kOp, "quantized", p.quantized, ScaleKind::kPerBlock, p.rows_capacity, p.width);
  check_apart(context, kOp, "x", p.x.values, "gate_up", p.gate_up, p.rows_capacity);
  check_apart(context, kOp, "x", p.x.values, "quantized", p.quantized.values, p.rows_capacity);
  check_apart(context, kOp, "gate_up", p.gate_up, "quantized", p.quantized.values, p.rows_capacity);
}

}  // namespace

void grouped_swiglu(OpContext& context, const GroupedSwigluParams& params) {
  check(context, params);
  const Extent rows{params.rows_capacity, params.offsets + params.weight->experts};
  // Addresses may decide what can be fused, and those of a measuring pass are not the real ones: it measures the parts.
  if (!context.measuring && context.fused && context.backend.fuses_grouped_swiglu(params)) {
    observe(context, params.weight->name, params.x, rows);
    return context.backend.grouped_swiglu(context.stream, params);
  }
  grouped_linear(context, {.x = params.x,
                           .weight = params.weight,
                           .offsets = params.offsets,
                           .y = params.gate_up,
                           .rows_capacity = params.rows_capacity,
                           .alignment = params.alignment});
  swiglu(context, {.gate_up = params.gate_up, .width = params.width, .quantized = params.quantized, .rows = rows});
}

void Backend::grouped_swiglu(Stream&, const GroupedSwigluParams&) { refuse_kernel(kOp); }

}  // namespace onerec
