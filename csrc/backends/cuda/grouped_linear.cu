#include "ops/grouped_linear.h"

#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/gemm/grouped_gemm.h"
#include "backends/cuda/gemm/grouped_select.h"
#include "backends/cuda/plain_linear.h"

namespace onerec::cuda {

std::int64_t CudaBackend::grouped_alignment(std::int64_t rows, std::int64_t experts, std::int64_t top_k) const {
  return limits_.tensor_cores ? choose_grouped_alignment(rows, experts, top_k) : 1;
}

std::size_t CudaBackend::grouped_linear_workspace(const GroupedLinearParams&) const { return 0; }

void CudaBackend::grouped_linear(Stream& stream, const GroupedLinearParams& params, Workspace) {
  const int config = limits_.tensor_cores ? choose_grouped_config(params) : kPlainGrouped;
  grouped_linear_with(stream, params, config, limits_.multiprocessors);
}

void grouped_linear_with(Stream& stream, const GroupedLinearParams& params, int config, int multiprocessors) {
  if (params.rows_capacity == 0) return;
  if (config != kPlainGrouped) return grouped_gemm(stream, params, config, multiprocessors);
  const LinearParams rows{
      .x = params.x, .weight = params.weight, .y = params.y, .rows = {.capacity = params.rows_capacity}};
  plain_linear(stream, "grouped_linear", rows, params.offsets, multiprocessors);
}

}  // namespace onerec::cuda
