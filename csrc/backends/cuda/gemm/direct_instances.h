// The instances of the direct kernel (direct_kernel.cuh), a source file per result, and those of the split kernel
// (split_kernel.cuh).
#pragma once

#include "backends/cuda/gemm/dense_instances.h"
#include "ops/device.h"
#include "ops/linear_norm.h"

namespace onerec::cuda {

// Norms that are left pending.
struct NormsOfCall {
  PendingNorm x = {};
  const LinearNormParams* y = nullptr;  // null: y has none
};

using DirectRunner = void (*)(Stream& stream, const DenseGemmCall& call);

// The kernel of a configuration with GemmSchedule::kDirect, for calls without and with a residual; null if there is
// none.
DirectRunner direct_fp8(const GemmConfig& config);
DirectRunner direct_added_fp8(const GemmConfig& config);

// The same with GemmSchedule::kSplit.
DirectRunner split_fp8(const GemmConfig& config);
// For calls with a norm of y.
DirectRunner split_normed_fp8(const GemmConfig& config);

// The same for silu(gate) * up in place of y: the call's outputs are the weight's, y and the residual (null) have half
// as many columns. With codes, if the call has memory for their progress.
DirectRunner direct_swiglu_fp8(const GemmConfig& config);
// For calls with a static scale.
DirectRunner direct_swiglu_codes_fp8(const GemmConfig& config);

}  // namespace onerec::cuda
