// silu(gate) * up, gate and up being the two halves of x W^T: the first product of a gated feed-forward network with
// what follows it.
#pragma once

#include "ops/linear.h"

namespace onerec {

// linear (ops/linear.h) into gate_up, then swiglu (ops/swiglu.h) of it: gates are columns [0, width) of the product,
// ups [width, 2 * width), both rounded to gate_up's dtype; silu(gate) * up in FP32 is stored in `y` or quantised. A
// backend may do it at once. It may then round silu(gate) * up to gate_up's dtype before it is quantised, or take the
// static scale of `quantized`, and what gate_up holds afterwards is unspecified. Exactly one of `y` and `quantized` is
// given.
struct LinearSwigluParams {
  Operand x = {};                        // [rows, K]; kNone for kDense, kPerRow for kFp8Channel
  const LinearWeight* weight = nullptr;  // [2 * width, K]
  const float* bias = nullptr;           // [2 * width] or null
  std::int64_t width = 0;
  Matrix gate_up = {};     // [rows, 2 * width], FP32 or BF16
  Matrix y = {};           // [rows, width] of gate_up's dtype, or data = null
  Operand quantized = {};  // [rows, width] codes, kPerRow or kPerBlock, or data = null
  Extent rows = {};
};

void linear_swiglu(OpContext& context, const LinearSwigluParams& params);

}  // namespace onerec
