#include "backends/cuda/gemm/direct_launch.cuh"

namespace onerec::cuda {

DirectRunner direct_swiglu_codes_fp8(const GemmConfig& config) {
  return find_swiglu<kernels::DirectResult::kSwigluCodes>(config);
}

}  // namespace onerec::cuda
