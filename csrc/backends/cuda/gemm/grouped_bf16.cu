#include "backends/cuda/gemm/grouped_launch.cuh"

namespace onerec::cuda {

GroupedRunner grouped_bf16(const GroupedConfig& config) {
  return find_grouped_tile<kernels::GroupedFormat::kBf16>(config);
}

}  // namespace onerec::cuda
