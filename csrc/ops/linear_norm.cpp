#include "ops/linear_norm.h"

#include "ops/backend.h"
#include "ops/checks.h"

namespace onerec {
namespace {

constexpr const char* kOp = "linear_norm";

void check(const OpContext& context, const LinearNormParams& p) {
  check_norm_of(kOp, p.norm, p.product.y, p.product.rows);
  check_norm_apart(context, kOp, p.norm, "x", p.product.x.values);
  check_norm_apart(context, kOp, p.norm, "residual", p.product.residual);
  check_norm_apart(context, kOp, p.norm, "y", p.product.y);
}

void issue_parts(OpContext& context, const LinearNormParams& params) {
  linear(context, params.product);
  rms_norm(context, params.norm);
}

}  // namespace

bool norm_comes_with(const OpContext& context, const LinearNormParams& params) {
  // Addresses may decide, and those of a measuring pass are not the real ones. A tap wants to see codes of the norm.
  return context.fused && !context.measuring && context.tap == nullptr && context.backend.fuses_linear_norm(params);
}

void linear_norm(OpContext& context, const LinearNormParams& params) {
  check(context, params);
  issue_as_one(context, params, norm_comes_with(context, params), issue_parts,
               [&] { context.backend.linear_norm(context.stream, params); });
}

void Backend::linear_norm(Stream&, const LinearNormParams&) { refuse_kernel(kOp); }

}  // namespace onerec
