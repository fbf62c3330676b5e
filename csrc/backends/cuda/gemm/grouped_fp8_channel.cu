#include "backends/cuda/gemm/grouped_launch.cuh"

namespace onerec::cuda {

GroupedRunner grouped_fp8_channel(const GroupedConfig& config) {
  return find_grouped_tile<kernels::GroupedFormat::kFp8Channel>(config);
}

}  // namespace onerec::cuda
