#include "ops/grouped_swiglu.h"

#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/gemm/grouped_gemm.h"
#include "backends/cuda/gemm/grouped_select.h"

namespace onerec::cuda {

bool CudaBackend::fuses_grouped_swiglu(const GroupedSwigluParams& params) const {
  return limits_.tensor_cores && choose_grouped_swiglu_config(params) != kUnfusedSwiglu;
}

void CudaBackend::grouped_swiglu(Stream& stream, const GroupedSwigluParams& params) {
  grouped_swiglu_gemm(stream, params, choose_grouped_swiglu_config(params), limits_.multiprocessors);
}

}  // namespace onerec::cuda
