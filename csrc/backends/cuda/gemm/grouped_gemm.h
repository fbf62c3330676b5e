// y = x W_e^T for rows sorted by expert, on the tensor cores, and codes of its SwiGLU. Plain C++ without CUTLASS.
#pragma once

#include <cstdint>
#include <string>

#include "ops/grouped_linear.h"
#include "ops/grouped_swiglu.h"
#include "ops/routed_feed_forward.h"

namespace onerec::cuda {

// Runs grouped_configs()[config], which fits `params`. Rows of the experts' padding are written as well. Needs no
// workspace; reads the offsets on the device.
void grouped_gemm(Stream& stream, const GroupedLinearParams& params, int config, int multiprocessors);

// The same with grouped_swiglu_configs()[config]. Leaves gate_up alone.
void grouped_swiglu_gemm(Stream& stream, const GroupedSwigluParams& params, int config, int multiprocessors);

// Both products of `params` with network_configs()[config], which fits. `progress`: network_progress_words() of them,
// all 0 before.
void network_gemm(Stream& stream, const RoutedFeedForwardParams& params, int config, int multiprocessors,
                  std::uint32_t* progress);

// For profiling: the configuration as text, such as "fp8_block_256x128", or "plain" for kPlainGrouped.
std::string grouped_name(int config);

// For profiling: grouped_linear() with kernel `config` (or kPlainGrouped) instead of the chosen one.
void grouped_linear_with(Stream& stream, const GroupedLinearParams& params, int config, int multiprocessors);

}  // namespace onerec::cuda
