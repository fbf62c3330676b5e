#include "backends/cuda/gemm/grouped_launch.cuh"

namespace onerec::cuda {

GroupedRunner grouped_fp8_block(int outputs, int tokens) {
  return find_grouped_tile<kernels::GroupedFormat::kFp8Block>(outputs, tokens);
}

}  // namespace onerec::cuda
