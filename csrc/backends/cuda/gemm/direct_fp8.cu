#include "backends/cuda/gemm/direct_launch.cuh"

namespace onerec::cuda {

DirectRunner direct_fp8(const GemmConfig& config) {
  constexpr auto kValues = kernels::DirectResult::kValues;
  for (const auto find : {find_direct<kValues, 256, 2>, find_direct<kValues, 256, 4>, find_direct<kValues, 192, 2>,
                          find_direct<kValues, 128, 2>, find_direct<kValues, 128, 4>}) {
    if (const DirectRunner runner = find(config)) return runner;
  }
  return nullptr;
}

}  // namespace onerec::cuda
