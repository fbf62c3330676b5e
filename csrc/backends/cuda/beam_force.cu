#include <limits>

#include "backends/cuda/beam_links.h"
#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/kernels/beam_force.cuh"
#include "backends/cuda/launch.h"
#include "core/error.h"

namespace onerec::cuda {

std::size_t CudaBackend::beam_force_workspace(const BeamForceParams& params) const {
  require(params.codebook <= kMaxCodebook, "[beam_force] got a codebook of ", params.codebook, " codes, want at most ",
          kMaxCodebook, " on this device. Use device 'cpu'.");
  require(params.rows_capacity <= std::numeric_limits<std::int32_t>::max(), "[beam_force] got ", params.rows_capacity,
          " beams, want fewer. Lower the batch.");
  return 0;
}

void CudaBackend::beam_force(Stream& stream, const BeamForceParams& params, Workspace) {
  if (params.batch == 0) return;
  launch(stream, "beam_force", kernels::force_kernel,
         {dim3(static_cast<unsigned>(params.rows_capacity)),
          dim3(static_cast<unsigned>(kernels::row_threads(params.codebook)))},
         kernels::ForceParams{.logits = static_cast<const float*>(params.logits.data),
                              .stride = params.logits.stride,
                              .codebook = static_cast<int>(params.codebook),
                              .batch = params.batch,
                              .row_offsets = params.row_offsets,
                              .next_offsets = params.next_offsets,
                              .forced = params.forced,
                              .scores = params.current.scores,
                              .states = params.current.states,
                              .next_scores = params.next.scores,
                              .next_states = params.next.states,
                              .links = links_of(params),
                              .status = params.status});
}

}  // namespace onerec::cuda
