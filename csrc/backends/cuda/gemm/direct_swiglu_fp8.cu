#include "backends/cuda/gemm/direct_launch.cuh"

namespace onerec::cuda {

DirectRunner direct_swiglu_fp8(const GemmConfig& config) {
  return find_swiglu<kernels::DirectResult::kSwigluValues>(config);
}

}  // namespace onerec::cuda
