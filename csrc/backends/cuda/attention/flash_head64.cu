#include "backends/cuda/attention/flash_launch.cuh"

namespace onerec::cuda {

void launch_flash_head64(Stream& stream, const FlashGrid& grid, const CUtensorMap& keys, const CUtensorMap& values,
                         kernels::ContextTensors context, const kernels::FlashAttentionArguments& arguments) {
  launch_flash<64>(stream, grid, keys, values, context, arguments);
}

}  // namespace onerec::cuda
