// A linear with the op that makes its input.
#pragma once

#include <variant>

#include "ops/linear.h"
#include "ops/quantize.h"
#include "ops/rms_norm.h"
#include "ops/swiglu.h"

namespace onerec {

// `input` (rms_norm, swiglu or quantize), which has product.x as its only output and the same rows, then the linear
// `product`. A backend may do both at once and leave product.x alone: what it holds afterwards is unspecified. What
// `input` reads overlaps neither product.y nor product.residual.
struct PreparedLinearParams {
  std::variant<RmsNormParams, SwigluParams, QuantizeParams> input;
  LinearParams product;
};

void prepared_linear(OpContext& context, const PreparedLinearParams& params);

// Whether prepared_linear() is a single kernel in this context, for those who would rather join the input with what
// comes before it.
bool prepared_at_once(const OpContext& context, const PreparedLinearParams& params);

}  // namespace onerec
