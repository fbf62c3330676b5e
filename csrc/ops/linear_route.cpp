#include "ops/linear_route.h"

#include "core/error.h"
#include "ops/backend.h"
#include "ops/checks.h"

namespace onerec {
namespace {

constexpr const char* kOp = "linear_route";

void check(const LinearRouteParams& p) {
  check_pointer(kOp, "weight", p.product.weight);
  const ConstMatrix& logits = p.route.logits;
  require(logits.data == p.product.y.data && logits.stride == p.product.y.stride, "[", kOp,
          "] got logits that are not the product's y, want them to be. Pass the same matrix.");
  require(p.product.rows.capacity == p.route.rows.capacity && p.product.rows.count == p.route.rows.count, "[", kOp,
          "] got a product of ", p.product.rows.capacity, " rows and a route of ", p.route.rows.capacity,
          ", want the same rows. Pass the same extent.");
}

void issue_parts(OpContext& context, const LinearRouteParams& params) {
  linear(context, params.product);
  route(context, params.route);
}

}  // namespace

void linear_route(OpContext& context, const LinearRouteParams& params) {
  check(params);
  // Addresses may decide, and those of a measuring pass are not the real ones; both ways need the workspace of route().
  // A tap wants to see the product's input.
  const bool at_once =
      context.fused && !context.measuring && context.tap == nullptr && context.backend.fuses_linear_route(params);
  issue_as_one(context, params, at_once, issue_parts,
               [&] { context.backend.linear_route(context.stream, params, context.workspace); });
}

void Backend::linear_route(Stream&, const LinearRouteParams&, Workspace) { refuse_kernel(kOp); }

}  // namespace onerec
