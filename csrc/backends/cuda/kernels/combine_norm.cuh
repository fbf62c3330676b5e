// The end of a mixture of experts and the norm of the rows that it makes: what moe_combine_kernel adds up stays in
// registers for what rms_norm_kernel makes of it.
#pragma once

#include "backends/cuda/kernels/moe.cuh"
#include "backends/cuda/kernels/rms_norm.cuh"

namespace onerec::cuda::kernels {

// A team per row, whole vectors everywhere. norm.x is not looked at; norm.rows has one part.
template <class T, class Team, int kVectors>
__global__ void __launch_bounds__(Team::kMaxThreads, kResidentThreads / Team::kMaxThreads)
    combine_norm_kernel(CombineParams<T> combine, const __grid_constant__ RmsNormArguments norm) {
  constexpr int kN = kVector<T>;
  const NormFactors<Team, kVectors, kN> gamma(norm);
  overlap_with_neighbours();
  const std::int64_t live = combine.count == nullptr ? norm.rows.rows : *combine.count;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * Team::teams();
  if (first >= live) return;  // the same for all threads of the block
  const RowPart at = row_part(norm.rows, first + Team::index(), live);
  float values[kVectors][kN] = {};
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int vector = row_vector<Team>(at, i);
    if (vector >= at.end) continue;
    const std::int64_t column = static_cast<std::int64_t>(vector) * kN;
    combine_columns(combine, at.row, column, values[i]);
    const uint4 rounded = pack<T>(values[i]);
    store_vector(combine.h + at.row * combine.h_stride + column, rounded);
    unpack<T>(rounded, values[i]);
  }
  Team team;
  normalise_part(team, norm, at, gamma, values);
}

}  // namespace onerec::cuda::kernels
