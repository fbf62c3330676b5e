// What follows a matrix product where the library does not do it: scales, bias, activation, residual, and the one
// rounding.
#pragma once

#include <cstdint>

#include "core/tensor_view.h"

namespace onerec::cpu {

// A rectangle of FP32 sums and where it goes. Null pointers leave their step out.
struct Epilogue {
  const float* sums = nullptr;           // [rows, cols], contiguous
  const float* row_scales = nullptr;     // [rows]
  const float* column_scales = nullptr;  // [cols]; given if row_scales are
  const float* bias = nullptr;           // [cols]
  bool leaky_relu = false;
  float negative_slope = 0.0f;
  ConstMatrix residual;  // rows x cols of y's dtype, or data = null; may be y
  Matrix y;              // rows x cols, FP32 or BF16
};

// y = round(activation(row_scale * (column_scale * sum) + bias) + residual)
void apply_epilogue(const Epilogue& epilogue);

}  // namespace onerec::cpu
