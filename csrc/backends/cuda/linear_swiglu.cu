#include "ops/linear_swiglu.h"

#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/gemm/dense_gemm.h"

namespace onerec::cuda {
namespace {

// With fewer rows, a product whose tiles have fewer, and swiglu() behind it, take less time.
constexpr std::int64_t kLeastFusedRows = 128;

}  // namespace

bool CudaBackend::fuses_linear_swiglu(const LinearSwigluParams& params) const {
  return limits_.tensor_cores && params.rows.capacity >= kLeastFusedRows && swiglu_gemm_takes(params);
}

std::size_t CudaBackend::linear_swiglu_workspace(const LinearSwigluParams& params) const {
  return limits_.tensor_cores ? swiglu_codes_gemm_workspace(params) : 0;
}

// A block of the product has a part of a row's hidden columns. A scale of the codes that is not known beforehand needs
// all of them.
void CudaBackend::linear_swiglu(Stream& stream, const LinearSwigluParams& params, Workspace workspace) {
  const int config = choose_swiglu_gemm(params, limits_.multiprocessors);
  if (swiglu_static_codes_gemm_takes(params)) {
    return swiglu_static_codes_gemm(stream, params, config, limits_.multiprocessors);
  }
  if (swiglu_codes_gemm_takes(params)) {
    return swiglu_codes_gemm(stream, params, config, limits_.multiprocessors, workspace);
  }
  const bool coded = params.quantized.values.data != nullptr;
  const Matrix hidden = coded ? hidden_in_gate_up(params) : params.y;
  swiglu_gemm(stream, params, hidden, config, limits_.multiprocessors);
  if (coded) quantize(stream, {.x = hidden, .quantized = params.quantized, .rows = params.rows});
}

}  // namespace onerec::cuda
