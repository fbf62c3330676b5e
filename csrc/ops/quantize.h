// E4M3 codes and scales of FP32 or BF16 activations; the formulas are in docs/numerics.md.
#pragma once

#include "ops/context.h"
#include "ops/operand.h"

namespace onerec {

struct QuantizeParams {
  ConstMatrix x = {};      // [rows, cols], FP32 or BF16
  Operand quantized = {};  // [rows, cols] codes, kPerRow or kPerBlock
  Extent rows = {};
};

void quantize(OpContext& context, const QuantizeParams& params);

}  // namespace onerec
