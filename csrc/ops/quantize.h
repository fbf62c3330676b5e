// E4M3 codes and scales of FP32 or BF16 activations; the formulas are in docs/numerics.md.
#pragma once

#include "ops/context.h"
#include "ops/operand.h"

namespace onerec {

class LinearWeight;

struct QuantizeParams {
  ConstMatrix x = {};      // [rows, cols], FP32 or BF16
  Operand quantized = {};  // [rows, cols] codes, kPerRow or kPerBlock
  Extent rows = {};
  const LinearWeight* next = nullptr;  // a hint: the weight that is read next, which a backend may bring nearer
};

void quantize(OpContext& context, const QuantizeParams& params);

}  // namespace onerec
