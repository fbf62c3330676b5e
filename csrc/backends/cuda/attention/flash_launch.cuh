// How an instance of the tensor-core cross-attention is started; included by the sources that compile one.
#pragma once

#include "backends/cuda/attention/flash_instances.h"
#include "backends/cuda/kernels/flash_attention.cuh"
#include "backends/cuda/launch.h"

namespace onerec::cuda {

template <class Config>
constexpr auto flash_kernel() {
  if constexpr (Config::kPaired) {
    return kernels::paired_flash_attention<Config>;
  } else {
    return kernels::flash_attention<Config>;
  }
}

template <int kHeadDim, kernels::ContextTensors kContext, bool kPaired>
void launch_flash(Stream& stream, int blocks, const kernels::FlashAttentionMaps& maps,
                  const kernels::FlashAttentionArguments& arguments) {
  using Config = kernels::FlashAttentionConfig<kHeadDim, kContext, kPaired>;
  launch(stream, "cross_attention", flash_kernel<Config>(),
         {.grid = dim3(static_cast<unsigned>(blocks)),
          .block = dim3(Config::kThreads),
          .shared_bytes = Config::kSharedBytes},
         maps, arguments);
}

template <int kHeadDim, kernels::ContextTensors kContext>
void launch_flash(Stream& stream, int blocks, const kernels::FlashAttentionMaps& maps,
                  const kernels::FlashAttentionArguments& arguments) {
  if (arguments.schedule.paired) {
    launch_flash<kHeadDim, kContext, true>(stream, blocks, maps, arguments);
  } else {
    launch_flash<kHeadDim, kContext, false>(stream, blocks, maps, arguments);
  }
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
