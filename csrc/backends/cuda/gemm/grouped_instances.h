// The kernels of grouped_gemm.h, a source file per format and result.
#pragma once

#include "backends/cuda/gemm/grouped_select.h"

namespace onerec::cuda {

using GroupedRunner = void (*)(Stream& stream, const GroupedLinearParams& params, int multiprocessors);
using GroupedSwigluRunner = void (*)(Stream& stream, const GroupedSwigluParams& params, int multiprocessors);
using NetworkRunner = void (*)(Stream& stream, const RoutedFeedForwardParams& params, int multiprocessors,
                               std::uint32_t* progress);

// The kernel of a configuration of that format; null if there is none.
GroupedRunner grouped_bf16(const GroupedConfig& config);
GroupedRunner grouped_fp8_channel(const GroupedConfig& config);
GroupedRunner grouped_fp8_block(const GroupedConfig& config);
GroupedSwigluRunner grouped_swiglu_fp8_block(const GroupedConfig& config);
NetworkRunner network_fp8_block(const GroupedConfig& config);

}  // namespace onerec::cuda
