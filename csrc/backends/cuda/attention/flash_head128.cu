#include "backends/cuda/attention/flash_launch.cuh"

namespace onerec::cuda {

void launch_flash_head128(Stream& stream, int blocks, kernels::ContextTensors context,
                          const kernels::FlashAttentionMaps& maps, const kernels::FlashAttentionArguments& arguments) {
  launch_flash<128>(stream, blocks, context, maps, arguments);
}

}  // namespace onerec::cuda
