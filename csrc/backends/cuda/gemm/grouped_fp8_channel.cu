#include "backends/cuda/gemm/grouped_launch.cuh"

namespace onerec::cuda {

GroupedRunner grouped_fp8_channel(int outputs, int tokens) {
  return find_grouped_tile<kernels::GroupedFormat::kFp8Channel>(outputs, tokens);
}

}  // namespace onerec::cuda
