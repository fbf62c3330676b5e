#include "backends/cuda/attention/flash_instances.h"
#include "backends/cuda/kernels/short_attention.cuh"
#include "backends/cuda/launch.h"

namespace onerec::cuda {
namespace {

template <int kHeadDim>
void launch_short(Stream& stream, const kernels::FlashAttentionMaps& maps,
                  const kernels::FlashAttentionArguments& arguments) {
  using Config = kernels::ShortAttentionConfig<kHeadDim>;
  const kernels::AttentionSchedule& work = arguments.schedule;
  launch(stream, "cross_attention", kernels::short_attention<Config>,
         {.grid = dim3(static_cast<unsigned>(work.row_tiles), static_cast<unsigned>(work.groups),
                       static_cast<unsigned>(work.requests)),
          .block = dim3(Config::kThreads),
          .shared_bytes = Config::kSharedBytes},
         maps, arguments);
}

}  // namespace

void launch_short_head64(Stream& stream, const kernels::FlashAttentionMaps& maps,
                         const kernels::FlashAttentionArguments& arguments) {
  launch_short<64>(stream, maps, arguments);
}

void launch_short_head128(Stream& stream, const kernels::FlashAttentionMaps& maps,
                          const kernels::FlashAttentionArguments& arguments) {
  launch_short<128>(stream, maps, arguments);
}

}  // namespace onerec::cuda
