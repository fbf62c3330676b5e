#include "backends/cuda/gemm/direct_launch.cuh"

namespace onerec::cuda {

DirectRunner direct_swiglu_codes_fp8(const GemmConfig& config) {
  constexpr auto kSwiglu = kernels::DirectResult::kSwigluCodes;
  for (const auto find : {find_direct<kSwiglu, 256, 2>, find_direct<kSwiglu, 224, 2>, find_direct<kSwiglu, 160, 2>,
                          find_direct<kSwiglu, 128, 2>}) {
    if (const DirectRunner runner = find(config)) return runner;
  }
  return nullptr;
}

}  // namespace onerec::cuda
