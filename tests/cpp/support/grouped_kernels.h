// The tensor-core kernels of products of rows sorted by expert, one by one. Without a GPU there are none.
#pragma once

#include <string>
#include <vector>

#include "ops/grouped_linear.h"
#include "ops/grouped_swiglu.h"
#include "ops/routed_feed_forward.h"

namespace onerec::test {

struct GroupedKernel {
  std::string name;
  int config;
  WeightFormat format;
  std::int64_t tokens;           // what an alignment must be a multiple of
  std::int64_t output_multiple;  // what the weights' outputs must be
};

std::vector<GroupedKernel> grouped_linear_kernels();
std::vector<GroupedKernel> grouped_swiglu_kernels();
std::vector<GroupedKernel> network_kernels();

// On `blocks` blocks of the GPU.
void run_kernel(Stream& stream, const GroupedLinearParams& params, const GroupedKernel& kernel, int blocks);
void run_kernel(Stream& stream, const GroupedSwigluParams& params, const GroupedKernel& kernel, int blocks);
// Gathers first; `workspace`: of routed_feed_forward().
void run_kernel(Stream& stream, const RoutedFeedForwardParams& params, const GroupedKernel& kernel, int blocks,
                Workspace workspace);

}  // namespace onerec::test
