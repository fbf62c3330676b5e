// The compiled shapes of the tensor-core cross-attention, one source file each.
#pragma once

#include <cuda.h>

#include "backends/cuda/kernels/flash_attention_arguments.cuh"
#include "ops/device.h"

namespace onerec::cuda {

struct FlashGrid {
  std::int64_t request_queries = 0;  // capacity of a request and group
  int groups = 0;
  std::int64_t requests = 0;
};

// `keys` and `values` are maps made by context_map; the same one if the values are the keys.
void launch_flash_head64(Stream& stream, const FlashGrid& grid, const CUtensorMap& keys, const CUtensorMap& values,
                         kernels::ContextTensors context, const kernels::FlashAttentionArguments& arguments);
void launch_flash_head128(Stream& stream, const FlashGrid& grid, const CUtensorMap& keys, const CUtensorMap& values,
                          kernels::ContextTensors context, const kernels::FlashAttentionArguments& arguments);

}  // namespace onerec::cuda
