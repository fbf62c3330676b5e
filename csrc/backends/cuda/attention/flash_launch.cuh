// How an instance of the tensor-core cross-attention is started; included by the sources that compile one.
#pragma once

#include "backends/cuda/attention/flash_instances.h"
#include "backends/cuda/kernels/flash_attention.cuh"
#include "backends/cuda/launch.h"

namespace onerec::cuda {

template <int kHeadDim, kernels::ContextTensors kContext>
void launch_flash(Stream& stream, const FlashGrid& grid, const CUtensorMap& keys, const CUtensorMap& values,
                  const kernels::FlashAttentionArguments& arguments) {
  using Config = kernels::FlashAttentionConfig<kHeadDim, kContext>;
  launch(stream, "cross_attention", kernels::flash_attention<Config>,
         {.grid = dim3(blocks_for(grid.request_queries, Config::kRows), static_cast<unsigned>(grid.groups),
                       static_cast<unsigned>(grid.requests * arguments.splits)),
          .block = dim3(Config::kThreads),
          .shared_bytes = Config::kSharedBytes},
         keys, values, arguments);
}

template <int kHeadDim>
void launch_flash(Stream& stream, const FlashGrid& grid, const CUtensorMap& keys, const CUtensorMap& values,
                  kernels::ContextTensors context, const kernels::FlashAttentionArguments& arguments) {
  using kernels::ContextTensors;
  if (context == ContextTensors::kShared) {
    launch_flash<kHeadDim, ContextTensors::kShared>(stream, grid, keys, values, arguments);
  } else {
    launch_flash<kHeadDim, ContextTensors::kSeparate>(stream, grid, keys, values, arguments);
  }
}

}  // namespace onerec::cuda
