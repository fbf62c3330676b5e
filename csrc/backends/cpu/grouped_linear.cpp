#include "ops/grouped_linear.h"

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/matmul.h"

namespace onerec::cpu {
namespace {

Matmul matmul_of(const GroupedLinearParams& params, int threads) {
  return Matmul({.x = params.x, .weight = params.weight, .y = params.y, .rows = {.capacity = params.rows_capacity}},
                threads);
}

}  // namespace

std::size_t CpuBackend::grouped_linear_workspace(const GroupedLinearParams& params) const {
  return params.rows_capacity == 0 ? 0 : matmul_of(params, device_.threads()).workspace_bytes();
}

void CpuBackend::grouped_linear(Stream& stream, const GroupedLinearParams& params, Workspace workspace) {
  if (params.rows_capacity == 0) return;
  const auto count = static_cast<std::size_t>(params.weight->experts) + 1;
  submit(stream, [matmul = matmul_of(params, device_.threads()), offsets = params.offsets, count,
                  scratch = workspace.data] { matmul.run({offsets, count}, scratch); });
}

}  // namespace onerec::cpu
