// A linear that makes the residual stream, and the norm that reads it next.
#pragma once

#include "ops/linear.h"
#include "ops/rms_norm.h"

namespace onerec {

// linear (ops/linear.h), then rms_norm (ops/rms_norm.h) of its y: norm.x is product.y with the same rows, a single
// group of all its columns. What the norm writes overlaps nothing that the product reads or writes. A backend may do
// both at once.
struct LinearNormParams {
  LinearParams product;
  RmsNormParams norm;
};

void linear_norm(OpContext& context, const LinearNormParams& params);

// Whether linear_norm() is a single kernel in this context, for those who would rather join the norm with what comes
// behind it.
bool norm_comes_with(const OpContext& context, const LinearNormParams& params);

}  // namespace onerec
