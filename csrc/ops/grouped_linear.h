// y = x W_e^T for rows sorted by expert: the matrix product of a mixture of experts.
#pragma once

#include "ops/linear.h"

namespace onerec {

// Rows [offsets[e], offsets[e + 1]) of x belong to expert e; offsets[experts] is the number of live rows. All offsets
// are multiples of `alignment`; what an expert's rows end with may be padding (ops/moe.h), for which y is unspecified.
// No bias, no residual. kFp8Block with kPerBlock x: sum over blocks b of sA[m, b] * sW[n / 128, b] * sum_{k in b}
// codes.
struct GroupedLinearParams {
  Operand x = {};                         // [rows, K]; kNone / kPerRow / kPerBlock for kDense / kFp8Channel / kFp8Block
  const LinearWeight* weight = nullptr;   // experts x [N, K]
  const std::int32_t* offsets = nullptr;  // [experts + 1], device
  Matrix y = {};                          // [rows, N], FP32 or BF16
  std::int64_t rows_capacity = 0;         // a multiple of alignment
  std::int64_t alignment = 1;
};

void grouped_linear(OpContext& context, const GroupedLinearParams& params);

}  // namespace onerec
