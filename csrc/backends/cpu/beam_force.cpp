#include <cmath>

#include "backends/cpu/beam_score.h"
#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/parallel.h"
#include "core/arena.h"

namespace onerec::cpu {
namespace {

void force_beam(const BeamForceParams& p, const float* lse, std::int64_t b, std::int64_t i) {
  const std::int64_t next_row = p.next_offsets[b] + i;
  const std::int64_t parent = p.row_offsets[b] + (p.level == 0 ? 0 : i);
  const std::int32_t code = p.forced[next_row * p.levels + p.level];
  extend_beam(p, parent, code, next_row);
  const bool alive = p.current.states[parent] >= 0 && std::isfinite(lse[parent]);
  p.next.states[next_row] = alive ? 0 : -1;
  p.next.scores[next_row] =
      alive ? candidate_score(p.current.scores[parent], p.logits.row<float>(parent)[code], lse[parent]) : -INFINITY;
}

}  // namespace

std::size_t CpuBackend::beam_force_workspace(const BeamForceParams& params) const {
  Arena arena;
  arena.allocate_array<float>(params.rows_capacity);
  return arena.used();
}

void CpuBackend::beam_force(Stream& stream, const BeamForceParams& params, Workspace workspace) {
  submit(stream, [p = params, lse = static_cast<float*>(workspace.data)] {
    if (p.batch == 0) return;
    const std::int64_t rows = p.row_offsets[p.batch];
    for_rows(rows, p.codebook, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) lse[r] = log_sum_exp(p.logits.row<float>(r), p.codebook);
    });

    for (std::int64_t b = 0; b < p.batch; ++b) {
      for (std::int64_t r = p.row_offsets[b]; r < p.row_offsets[b + 1]; ++r) {
        const bool broken = p.current.states[r] >= 0 && !std::isfinite(lse[r]);
        if (broken) p.status[b] = static_cast<std::int32_t>(BeamStatus::kNonFinite);
      }
      const std::int64_t width = p.next_offsets[b + 1] - p.next_offsets[b];
      for (std::int64_t i = 0; i < width; ++i) force_beam(p, lse, b, i);
    }
  });
}

}  // namespace onerec::cpu
