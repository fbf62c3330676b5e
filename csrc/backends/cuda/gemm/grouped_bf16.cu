#include "backends/cuda/gemm/grouped_launch.cuh"

namespace onerec::cuda {

GroupedRunner grouped_bf16(int outputs, int tokens) {
  return find_grouped_tile<kernels::GroupedFormat::kBf16>(outputs, tokens);
}

}  // namespace onerec::cuda
