#include "ops/combine_norm.h"

#include "ops/backend.h"
#include "ops/checks.h"

namespace onerec {
namespace {

constexpr const char* kOp = "combine_norm";

void check(const OpContext& context, const CombineNormParams& p) {
  check_norm_of(kOp, p.norm, p.combine.h, p.combine.rows);
  check_norm_apart(context, kOp, p.norm, "expert_out", p.combine.expert_out);
  check_norm_apart(context, kOp, p.norm, "shared", p.combine.shared);
  check_norm_apart(context, kOp, p.norm, "h", p.combine.h);
}

void issue_parts(OpContext& context, const CombineNormParams& params) {
  moe_combine(context, params.combine);
  rms_norm(context, params.norm);
}

}  // namespace

bool norm_comes_with(const OpContext& context, const CombineNormParams& params) {
  // Addresses may decide, and those of a measuring pass are not the real ones.
  return context.fused && !context.measuring && context.backend.fuses_combine_norm(params);
}

void combine_norm(OpContext& context, const CombineNormParams& params) {
  check(context, params);
  issue_as_one(context, params, norm_comes_with(context, params), issue_parts,
               [&] { context.backend.combine_norm(context.stream, params); });
}

void Backend::combine_norm(Stream&, const CombineNormParams&) { refuse_kernel(kOp); }

}  // namespace onerec
