// The matrix product on the ordinary cores: any weight format, shape and alignment. See kernels/small_linear.cuh.
#pragma once

#include <cstdint>

#include "backends/cuda/kernels/small_linear.cuh"
#include "ops/device.h"
#include "ops/linear.h"

namespace onerec::cuda {

// linear(), or grouped_linear() if `offsets` (as in GroupedLinearParams) are given; params.rows.count is then null.
// Needs no workspace. `op` names the caller in errors.
void plain_linear(Stream& stream, const char* op, const LinearParams& params, const std::int32_t* offsets,
                  int multiprocessors);

// What the kernel of plain_linear is called with, and the kind of weight that it is made for.
kernels::SmallLinearParams small_linear_params(const LinearParams& params, const std::int32_t* offsets,
                                               int multiprocessors);
kernels::WeightKind weight_kind(const LinearWeight& weight);

}  // namespace onerec::cuda
