#include "ops/routed_feed_forward.h"

#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/gather_rows.h"
#include "backends/cuda/gemm/grouped_gemm.h"
#include "backends/cuda/gemm/grouped_select.h"

namespace onerec::cuda {

bool CudaBackend::fuses_routed_feed_forward(const RoutedFeedForwardParams& params) const {
  return limits_.tensor_cores && choose_network_config(params) != kNoNetwork;
}

std::size_t CudaBackend::routed_feed_forward_workspace(const RoutedFeedForwardParams& params) const {
  return limits_.tensor_cores ? static_cast<std::size_t>(network_progress_words(params)) * sizeof(std::uint32_t) : 0;
}

void CudaBackend::routed_feed_forward(Stream& stream, const RoutedFeedForwardParams& params, Workspace workspace) {
  auto* const progress = static_cast<std::uint32_t*>(workspace.data);
  gather_and_clear(stream, params.gather, {progress, network_progress_words(params)});
  network_gemm(stream, params, choose_network_config(params), limits_.multiprocessors, progress);
}

}  // namespace onerec::cuda
