// The compiled shapes of the tensor-core cross-attention, one source file each.
#pragma once

#include "backends/cuda/kernels/flash_attention_arguments.cuh"
#include "ops/device.h"

namespace onerec::cuda {

// Paired items have a block each.
void launch_flash_head64(Stream& stream, int blocks, kernels::ContextTensors context,
                         const kernels::FlashAttentionMaps& maps, const kernels::FlashAttentionArguments& arguments);
void launch_flash_head128(Stream& stream, int blocks, kernels::ContextTensors context,
                          const kernels::FlashAttentionMaps& maps, const kernels::FlashAttentionArguments& arguments);

// A block for every tile of rows of a warpgroup, group and request, whose keys are the values and at most kFewTiles
// tiles; no splits.
void launch_short_head64(Stream& stream, const kernels::FlashAttentionMaps& maps,
                         const kernels::FlashAttentionArguments& arguments);
void launch_short_head128(Stream& stream, const kernels::FlashAttentionMaps& maps,
                          const kernels::FlashAttentionArguments& arguments);

}  // namespace onerec::cuda
