// How an instance of the tensor-core cross-attention is started; included by the sources that compile one.
#pragma once

#include "backends/cuda/attention/flash_instances.h"
#include "backends/cuda/kernels/flash_attention.cuh"
#include "backends/cuda/launch.h"

namespace onerec::cuda {

template <int kHeadDim, kernels::ContextTensors kContext>
void launch_flash(Stream& stream, int blocks, const kernels::FlashAttentionMaps& maps,
                  const kernels::FlashAttentionArguments& arguments) {
  using Config = kernels::FlashAttentionConfig<kHeadDim, kContext>;
  launch(stream, "cross_attention", kernels::flash_attention<Config>,
         {.grid = dim3(static_cast<unsigned>(blocks)),
          .block = dim3(Config::kThreads),
          .shared_bytes = Config::kSharedBytes},
         maps, arguments);
}

template <int kHeadDim>
void launch_flash(Stream& stream, int blocks, kernels::ContextTensors context, const kernels::FlashAttentionMaps& maps,
                  const kernels::FlashAttentionArguments& arguments) {
  using kernels::ContextTensors;
  if (context == ContextTensors::kShared) {
    launch_flash<kHeadDim, ContextTensors::kShared>(stream, blocks, maps, arguments);
  } else {
    launch_flash<kHeadDim, ContextTensors::kSeparate>(stream, blocks, maps, arguments);
  }
}

}  // namespace onerec::cuda
