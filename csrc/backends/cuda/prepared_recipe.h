// What the kernels that make their own input are told about it.
#pragma once

#include "backends/cuda/kernels/prepared_linear.cuh"
#include "ops/prepared_linear.h"

namespace onerec::cuda {

// What a block makes its rows from; members = 0: it cannot.
struct Recipe {
  kernels::RowMaker maker = kernels::RowMaker::kCopy;
  DType dtype = DType::kF32;
  kernels::RowSource source = {};
};

Recipe recipe_of(const PreparedLinearParams& params);

}  // namespace onerec::cuda
