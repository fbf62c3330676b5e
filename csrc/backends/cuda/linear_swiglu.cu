#include "ops/linear_swiglu.h"

#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/gemm/dense_gemm.h"

namespace onerec::cuda {
namespace {

// With fewer rows, a product whose tiles have fewer, and swiglu() behind it, take less time.
constexpr std::int64_t kLeastFusedRows = 128;

// Memory for [rows, width] where the product would have been.
Matrix hidden_in(const LinearSwigluParams& p) {
  Matrix hidden = p.gate_up;
  hidden.cols = p.width;
  return hidden;
}

}  // namespace

bool CudaBackend::fuses_linear_swiglu(const LinearSwigluParams& params) const {
  return limits_.tensor_cores && params.rows.capacity >= kLeastFusedRows && swiglu_gemm_takes(params);
}

// A block of the product has a part of a row's hidden columns, a scale of the codes needs all of them.
void CudaBackend::linear_swiglu(Stream& stream, const LinearSwigluParams& params) {
  const bool coded = params.quantized.values.data != nullptr;
  const Matrix hidden = coded ? hidden_in(params) : params.y;
  swiglu_gemm(stream, params, hidden, choose_swiglu_gemm(params, limits_.multiprocessors), limits_.multiprocessors);
  if (coded) quantize(stream, {.x = hidden, .quantized = params.quantized, .rows = params.rows});
}

}  // namespace onerec::cuda
