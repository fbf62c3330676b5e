#include "ops/linear_norm.h"

#include "core/error.h"
#include "ops/backend.h"
#include "ops/checks.h"
#include "ops/tap.h"

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
  // Addresses may decide, and those of a measuring pass are not the real ones.
  return context.fused && !context.measuring && context.backend.fuses_linear_norm(params);
}

void linear_norm(OpContext& context, const LinearNormParams& params) {
  check(context, params);
  const bool ready = workspace_ready(context, kOp, context.backend.linear_norm_workspace(params));
  if (!ready || !norm_comes_with(context, params)) return issue_parts(context, params);
  // The parts check their params.
  OpContext checking{.backend = context.backend, .stream = context.stream, .measuring = true};
  issue_parts(checking, params);
  observe(context, params.product.weight->name, params.product.x, params.product.rows);
  context.backend.linear_norm(context.stream, params, context.workspace);
}

void Backend::linear_norm(Stream&, const LinearNormParams&, Workspace) {
  throw InternalError("[linear_norm] got a backend that has no such kernel, want its parts. Issue them.");
}

}  // namespace onerec
