// y = silu(gate) * up, silu(g) = g / (1 + exp(-g)).
#pragma once

#include "ops/context.h"
#include "ops/operand.h"

namespace onerec {

// Exactly one of `y` and `quantized` is given.
struct SwigluParams {
  ConstMatrix gate_up = {};  // [rows, 2 * width], FP32 or BF16: gate in columns [0, width), up behind it
  std::int64_t width = 0;
  Matrix y = {};           // [rows, width] of gate_up's dtype, or data = null
  Operand quantized = {};  // codes of the FP32 product, kPerRow or kPerBlock, or data = null
  Extent rows = {};
};

void swiglu(OpContext& context, const SwigluParams& params);

}  // namespace onerec
