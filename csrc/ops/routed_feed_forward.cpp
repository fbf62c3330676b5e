#include "ops/routed_feed_forward.h"

#include "core/error.h"
#include "ops/backend.h"
#include "ops/checks.h"

namespace onerec {
namespace {

constexpr const char* kOp = "routed_feed_forward";

bool same_matrix(const ConstMatrix& a, const ConstMatrix& b) { return a.data == b.data && a.stride == b.stride; }

void check(const RoutedFeedForwardParams& p) {
  check_pointer(kOp, "first.weight", p.first.weight);
  check_pointer(kOp, "second.weight", p.second.weight);
  check_at_least(kOp, "alignment", p.first.alignment, 1);
  require(same_matrix(p.gather.sorted.values, p.first.x.values) && p.gather.sorted.scales == p.first.x.scales &&
              same_matrix(p.first.quantized.values, p.second.x.values) && p.first.quantized.scales == p.second.x.scales,
          "[routed_feed_forward] got a part that does not read what the part before it writes, want it to. Pass the "
          "same operands.");
  require(p.first.weight->experts == p.second.weight->experts, "[routed_feed_forward] got weights of ",
          p.first.weight->experts, " and ", p.second.weight->experts,
          " experts, want as many. Pass the weights of one layer.");
  require(p.first.offsets == p.second.offsets && p.first.rows_capacity == p.second.rows_capacity &&
              p.first.alignment == p.second.alignment && p.gather.sorted_rows.capacity == p.first.rows_capacity &&
              p.gather.sorted_rows.count == p.first.offsets + p.first.weight->experts,
          "[routed_feed_forward] got parts of different rows, want the same. Pass the offsets, the capacity and the "
          "alignment of one route().");
}

void issue_parts(OpContext& context, const RoutedFeedForwardParams& params) {
  gather_rows(context, params.gather);
  grouped_swiglu(context, params.first);
  grouped_linear(context, params.second);
}

}  // namespace

void routed_feed_forward(OpContext& context, const RoutedFeedForwardParams& params) {
  check(params);
  // Addresses may decide what can be fused, and those of a measuring pass are not the real ones: it measures both ways.
  // A tap wants to see both inputs.
  const bool ready = workspace_ready(context, kOp, context.backend.routed_feed_forward_workspace(params));
  const bool at_once =
      ready && context.fused && context.tap == nullptr && context.backend.fuses_routed_feed_forward(params);
  issue_as_one(context, params, at_once, issue_parts,
               [&] { context.backend.routed_feed_forward(context.stream, params, context.workspace); });
}

void Backend::routed_feed_forward(Stream&, const RoutedFeedForwardParams&, Workspace) { refuse_kernel(kOp); }

}  // namespace onerec
