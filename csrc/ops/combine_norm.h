// The end of a mixture of experts, and the norm that reads the residual stream next.
#pragma once

#include "ops/moe.h"
#include "ops/rms_norm.h"

namespace onerec {

// moe_combine (ops/moe.h), then rms_norm (ops/rms_norm.h) of its h: norm.x is combine.h with the same rows, a single
// group of all its columns. What the norm writes overlaps nothing that the other reads or writes. A backend may do both
// at once.
struct CombineNormParams {
  MoeCombineParams combine;
  RmsNormParams norm;
};

void combine_norm(OpContext& context, const CombineNormParams& params);

// Whether combine_norm() is a single kernel in this context, for those who would rather join the norm with what comes
// behind it.
bool norm_comes_with(const OpContext& context, const CombineNormParams& params);

}  // namespace onerec
