// The tensor cores take what has whole vectors everywhere and enough rows; the plain kernel takes everything else.
#include "ops/linear.h"

#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/gemm/dense_gemm.h"
#include "backends/cuda/gemm/gemm_select.h"
#include "backends/cuda/plain_linear.h"

namespace onerec::cuda {

namespace {

int config_for(const LinearParams& params, const DeviceLimits& limits) {
  if (!limits.tensor_cores || !dense_gemm_takes(params)) return kPlainGemm;
  return choose_gemm(params, limits.multiprocessors);
}

}  // namespace

bool takes_tensor_cores(const LinearParams& params, const DeviceLimits& limits) {
  return config_for(params, limits) != kPlainGemm;
}

void linear_with(Stream& stream, const LinearParams& params, int config, int multiprocessors) {
  if (config == kPlainGemm) return plain_linear(stream, "linear", params, nullptr, multiprocessors);
  dense_gemm(stream, params, config, multiprocessors);
}

std::size_t CudaBackend::linear_workspace(const LinearParams&) const { return 0; }

void CudaBackend::linear(Stream& stream, const LinearParams& params, Workspace) {
  if (params.rows.capacity == 0) return;
  linear_with(stream, params, config_for(params, limits_), limits_.multiprocessors);
}

}  // namespace onerec::cuda
