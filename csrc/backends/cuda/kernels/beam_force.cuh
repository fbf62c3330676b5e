// beam_force: one block per row finds the row's log-sum-exp and writes the beams that continue the row.
#pragma once

#include "backends/cuda/kernels/beam_score.cuh"
#include "backends/cuda/kernels/grid_dependency.cuh"

namespace onerec::cuda::kernels {

struct ForceParams {
  const float* logits;  // rows `stride` apart
  std::int64_t stride;
  int codebook;
  std::int64_t batch;
  const std::int32_t* row_offsets;   // [batch + 1]
  const std::int32_t* next_offsets;  // [batch + 1]
  const std::int32_t* forced;        // [next rows, levels]
  const float* scores;
  const std::int32_t* states;
  float* next_scores;
  std::int32_t* next_states;
  BeamLinks links;
  std::int32_t* status;  // [batch]
};

static __global__ void __launch_bounds__(kRowThreads, 2) force_kernel(ForceParams p) {
  overlap_with_neighbours();
  __shared__ float2 scratch[kWarp];
  __shared__ std::int32_t request;
  const std::int64_t row = blockIdx.x;
  if (row >= p.row_offsets[p.batch]) return;
  const float* logits = p.logits + row * p.stride;
  find_request(p.row_offsets, p.batch, row, &request);
  const float lse = row_log_sum_exp(logits, p.codebook, scratch, [](int, float(&)[kRowLoads]) {});

  const bool live = p.states[row] >= 0;
  if (live && !isfinite(lse) && threadIdx.x == 0) atomicMax(&p.status[request], 1);
  const std::int64_t in_request = row - p.row_offsets[request];
  std::int64_t begin = p.next_offsets[request] + in_request;
  std::int64_t end = p.next_offsets[request + 1];
  if (p.links.level > 0) {
    end = min(end, begin + 1);
  } else if (in_request > 0) {
    return;
  }
  for (std::int64_t next = begin + threadIdx.x; next < end; next += blockDim.x) {
    const std::int32_t code = p.forced[next * p.links.levels + p.links.level];
    const bool lives_on = live && isfinite(lse);
    extend_beam(p.links, row, code, next);
    p.next_states[next] = lives_on ? 0 : -1;
    p.next_scores[next] = lives_on ? candidate_score(p.scores[row], logits[code], lse) : -INFINITY;
  }
}

}  // namespace onerec::cuda::kernels
