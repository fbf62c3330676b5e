#include "backends/cuda/gemm/direct_launch.cuh"

namespace onerec::cuda {
namespace {

template <kernels::DirectResult kResult>
DirectRunner find_any(const GemmConfig& config) {
  for (const auto find : {find_direct<kResult, 256, 2>, find_direct<kResult, 192, 2>, find_direct<kResult, 128, 2>,
                          find_direct<kResult, 128, 4>}) {
    if (const DirectRunner runner = find(config)) return runner;
  }
  return nullptr;
}

}  // namespace

DirectRunner direct_fp8(const GemmConfig& config) { return find_any<kernels::DirectResult::kValues>(config); }

DirectRunner direct_added_fp8(const GemmConfig& config) {
  return find_any<kernels::DirectResult::kAddedValues>(config);
}

}  // namespace onerec::cuda
