#include "ops/moe.h"

#include "core/error.h"
#include "ops/backend.h"
#include "ops/checks.h"

namespace onerec {

void route(OpContext& context, const RouteParams& params) {
  constexpr const char* kOp = "route";
  check_extent(kOp, "rows", params.rows);
  check_at_least(kOp, "experts", params.experts, 1);
  require(params.top_k >= 1 && params.top_k <= params.experts, "[route] got top_k = ", params.top_k, ", want 1 to ",
          params.experts, ", the number of experts. Correct the configuration.");
  check_at_least(kOp, "alignment", params.alignment, 1);
  // The logits may be padded: more columns than experts.
  check_at_least(kOp, "columns of logits", params.logits.cols, params.experts);
  check_matrix(kOp, "logits", params.logits, {DType::kF32}, params.rows.capacity, params.logits.cols);
  check_pointer(kOp, "offsets", params.offsets);
  if (params.rows.capacity > 0) {
    check_pointer(kOp, "bias", params.bias);
    check_pointer(kOp, "selected", params.selected);
    check_pointer(kOp, "weights", params.weights);
    check_pointer(kOp, "slots", params.slots);
    check_pointer(kOp, "sources", params.sources);
  }

  Backend& backend = context.backend;
  if (!workspace_ready(context, kOp, backend.route_workspace(params))) return;
  backend.route(context.stream, params, context.workspace);
}

void gather_rows(OpContext& context, const GatherRowsParams& params) {
  constexpr const char* kOp = "gather_rows";
  check_extent(kOp, "sorted_rows", params.sorted_rows);
  const ConstMatrix x = params.x.values;
  const std::int64_t capacity = params.sorted_rows.capacity;
  if (params.x.quantized()) {
    check_quantized(kOp, "x", params.x, 0, x.cols);
    check_quantized(kOp, "sorted", params.sorted, params.x.scale_kind, capacity, x.cols);
    if (capacity > 0) check_pointer(kOp, "scales of x", params.x.scales);
  } else {
    require(!params.sorted.quantized(),
            "[gather_rows] got x without scales and sorted with, want the same kind. Correct scale_kind.");
    check_matrix(kOp, "x", x, {DType::kF32, DType::kBF16}, 0, x.cols);
    check_matrix(kOp, "sorted", params.sorted.values, {x.dtype}, capacity, x.cols);
  }
  if (capacity > 0) {
    check_pointer(kOp, "x", x.data);
    check_pointer(kOp, "sources", params.sources);
  }

  if (!workspace_ready(context, kOp, 0)) return;
  context.backend.gather_rows(context.stream, params);
}

void moe_combine(OpContext& context, const MoeCombineParams& params) {
  constexpr const char* kOp = "moe_combine";
  check_extent(kOp, "rows", params.rows);
  check_at_least(kOp, "top_k", params.top_k, 1);
  const std::int64_t width = params.h.cols;
  check_matrix(kOp, "h", params.h, {DType::kF32, DType::kBF16}, params.rows.capacity, width);
  check_matrix(kOp, "expert_out", params.expert_out, {params.h.dtype}, params.rows.capacity * params.top_k, width);
  if (params.shared.data != nullptr) {
    check_matrix(kOp, "shared", params.shared, {params.h.dtype}, params.rows.capacity, width);
  }
  if (params.rows.capacity > 0) {
    check_pointer(kOp, "slots", params.slots);
    check_pointer(kOp, "weights", params.weights);
  }

  if (!workspace_ready(context, kOp, 0)) return;
  context.backend.moe_combine(context.stream, params);
}

}  // namespace onerec
