// The tensor cores take what has whole vectors everywhere and enough rows; the plain kernel takes everything else.
#include "ops/linear.h"

#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/gemm/dense_gemm.h"
#include "backends/cuda/gemm/gemm_select.h"
#include "backends/cuda/plain_linear.h"
#include "core/error.h"

namespace onerec::cuda {

void linear_with(Stream& stream, const LinearParams& params, int config, int multiprocessors) {
  if (config == kPlainGemm) return plain_linear(stream, "linear", params, nullptr, multiprocessors);
  dense_gemm(stream, params, config, multiprocessors);
}

std::size_t CudaBackend::linear_workspace(const LinearParams&) const { return 0; }

void CudaBackend::linear(Stream& stream, const LinearParams& params, Workspace) {
  if (params.rows.capacity == 0) return;
  const bool tensor_cores = limits_.tensor_cores && dense_gemm_takes(params);
  ensure(tensor_cores || params.x.pending.squares == nullptr, "[linear] got a pending norm for a plain kernel");
  const int config = tensor_cores ? choose_gemm(params, limits_.multiprocessors) : kPlainGemm;
  linear_with(stream, params, config, limits_.multiprocessors);
}

bool CudaBackend::reads_pending_norm(const LinearWeight& weight, std::int64_t rows) const {
  return limits_.tensor_cores && pending_gemm_takes(weight, rows, limits_.multiprocessors);
}

bool CudaBackend::fuses_linear_norm(const LinearNormParams& params) const {
  return limits_.tensor_cores && norm_gemm_takes(params, limits_.multiprocessors);
}

void CudaBackend::linear_norm(Stream& stream, const LinearNormParams& params) {
  norm_gemm(stream, params, choose_norm_gemm(params, limits_.multiprocessors), limits_.multiprocessors);
}

}  // namespace onerec::cuda
