// A product that adds to the residual stream, and the norm that reads the stream next.
#pragma once

#include "ops/linear.h"
#include "ops/rms_norm.h"

namespace onerec {

// linear (ops/linear.h), then rms_norm (ops/rms_norm.h) of its y: norm.x is product.y with the same rows, a single
// group of all its columns. What the norm writes overlaps nothing that the other reads or writes. A backend may do both
// at once where norm.quantized is pending: it then takes the scales of its codes from `previous`, whose values are
// product.residual, and sets `overflowed` where they turn out too small.
struct LinearNormParams {
  LinearParams product;
  RmsNormParams norm;
  Operand previous = {};               // the norm of the residual, pending; or data = null
  std::int32_t* overflowed = nullptr;  // device
};

void linear_norm(OpContext& context, const LinearNormParams& params);

// Whether linear_norm() is a single kernel in this context.
bool norm_comes_with(const OpContext& context, const LinearNormParams& params);

}  // namespace onerec
