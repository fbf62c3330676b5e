// codes of silu(gate) * up for rows sorted by expert, gate and up being two halves of x W_e^T: the first product of a
// mixture of experts with what follows it.
#pragma once

#include "ops/linear.h"

namespace onerec {

// grouped_linear (ops/grouped_linear.h) into gate_up, then swiglu (ops/swiglu.h) of it: gates are columns [0, width) of
// the product, ups [width, 2 * width), both rounded to gate_up's dtype; silu(gate) * up in FP32 is quantised. A backend
// may do all of it at once and leave gate_up alone: what gate_up holds afterwards is unspecified, as are the results of
// an expert's padding rows.
struct GroupedSwigluParams {
  Operand x = {};                         // [rows, K] codes, kPerBlock
  const LinearWeight* weight = nullptr;   // experts x [2 * width, K], kFp8Block
  const std::int32_t* offsets = nullptr;  // [experts + 1], device
  std::int64_t width = 0;
  Matrix gate_up = {};             // [rows, 2 * width], FP32 or BF16
  Operand quantized = {};          // [rows, width] codes, kPerBlock
  std::int64_t rows_capacity = 0;  // a multiple of alignment
  std::int64_t alignment = 1;
};

void grouped_swiglu(OpContext& context, const GroupedSwigluParams& params);

}  // namespace onerec
