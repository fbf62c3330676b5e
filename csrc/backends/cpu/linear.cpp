#include "ops/linear.h"

#include <array>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/matmul.h"

namespace onerec::cpu {

std::size_t CpuBackend::linear_workspace(const LinearParams& params) const {
  return params.rows.capacity == 0 ? 0 : Matmul(params, device_.threads()).workspace_bytes();
}

void CpuBackend::linear(Stream& stream, const LinearParams& params, Workspace workspace) {
  if (params.rows.capacity == 0) return;
  submit(stream, [matmul = Matmul(params, device_.threads()), rows = params.rows, scratch = workspace.data] {
    const std::array<std::int32_t, 2> offsets = {0, static_cast<std::int32_t>(live(rows))};
    matmul.run(offsets, scratch);
  });
}

}  // namespace onerec::cpu
