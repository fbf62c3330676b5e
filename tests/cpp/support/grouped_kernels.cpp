#include "support/grouped_kernels.h"

#include "support/device.h"
#if defined(ONEREC_TEST_CUDA)
#include <span>

#include "backends/cuda/gather_rows.h"
#include "backends/cuda/gemm/direct_tiles.h"
#include "backends/cuda/gemm/grouped_gemm.h"
#include "backends/cuda/gemm/grouped_select.h"
#endif

namespace onerec::test {

#if defined(ONEREC_TEST_CUDA)
namespace {

std::vector<GroupedKernel> kernels_of(std::span<const cuda::GroupedConfig> configs) {
  std::vector<GroupedKernel> kernels;
  if (test_device() != TestDevice::kCuda) return kernels;
  for (std::size_t i = 0; i < configs.size(); ++i) {
    const bool ordered = configs[i].layout == cuda::GroupedLayout::kTokenRows;
    kernels.push_back({configs[i].name, static_cast<int>(i), configs[i].format, configs[i].tokens,
                       ordered ? cuda::kernels::kResultGroup : 8});
  }
  return kernels;
}

}  // namespace

std::vector<GroupedKernel> grouped_linear_kernels() { return kernels_of(cuda::grouped_configs()); }

std::vector<GroupedKernel> grouped_swiglu_kernels() { return kernels_of(cuda::grouped_swiglu_configs()); }

std::vector<GroupedKernel> network_kernels() { return kernels_of(cuda::network_configs()); }

void run_kernel(Stream& stream, const GroupedLinearParams& params, const GroupedKernel& kernel, int blocks) {
  cuda::grouped_gemm(stream, params, kernel.config, blocks);
}

void run_kernel(Stream& stream, const GroupedSwigluParams& params, const GroupedKernel& kernel, int blocks) {
  cuda::grouped_swiglu_gemm(stream, params, kernel.config, blocks);
}

void run_kernel(Stream& stream, const RoutedFeedForwardParams& params, const GroupedKernel& kernel, int blocks,
                Workspace workspace) {
  auto* const progress = static_cast<std::uint32_t*>(workspace.data);
  cuda::gather_and_clear(stream, params.gather, {progress, cuda::network_progress_words(params)});
  cuda::network_gemm(stream, params, kernel.config, blocks, progress);
}
#else
std::vector<GroupedKernel> grouped_linear_kernels() { return {}; }

std::vector<GroupedKernel> grouped_swiglu_kernels() { return {}; }

std::vector<GroupedKernel> network_kernels() { return {}; }

void run_kernel(Stream&, const GroupedLinearParams&, const GroupedKernel&, int) {}

void run_kernel(Stream&, const GroupedSwigluParams&, const GroupedKernel&, int) {}

void run_kernel(Stream&, const RoutedFeedForwardParams&, const GroupedKernel&, int, Workspace) {}
#endif

}  // namespace onerec::test
