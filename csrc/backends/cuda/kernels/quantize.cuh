// E4M3 codes and scales of rows.
#pragma once

#include "backends/cuda/kernels/grid_dependency.cuh"
#include "backends/cuda/kernels/row_quantize.cuh"

namespace onerec::cuda::kernels {

// kPerRow: rows.parts = 1.
struct QuantizeArguments {
  RowParts rows = {};
  std::int64_t cols = 0;
  const void* x = nullptr;
  std::int64_t x_stride = 0;
  CodeRows quantized = {};
};

// `cols` is a multiple of a vector of T; x and its rows are aligned to vectors, the codes to as many codes.
template <class T, class Team, int kVectors>
__global__ void __launch_bounds__(Team::kMaxThreads, resident_row_blocks<Team>(kVectors))
    quantize_kernel(const __grid_constant__ QuantizeArguments p) {
  overlap_with_neighbours();
  constexpr int kN = kVector<T>;
  Team team;
  const auto load = [&](const RowPart& at) {
    return load_row_vectors<T, Team, kVectors>(static_cast<const T*>(p.x) + at.row * p.x_stride, at);
  };
  const auto process = [&](const RowPart& at, const RowVectors<kVectors>& held) {
    float values[kVectors][kN];
#pragma unroll
    for (int i = 0; i < kVectors; ++i) unpack<T>(held.vector[i], values[i]);
    quantize_part(team, p.quantized, at, values);
  };
  for_row_parts<Team>(p.rows, load, process);
}

// Any width and alignment. A block takes a row at a time; of p.rows only the numbers of rows are used.
template <class T>
__global__ void __launch_bounds__(256) quantize_plain_kernel(QuantizeArguments p) {
  overlap_with_neighbours();
  const std::int64_t live = p.rows.count == nullptr ? p.rows.rows : *p.rows.count;
  for (std::int64_t row = blockIdx.x; row < live; row += gridDim.x) {
    const T* const x = static_cast<const T*>(p.x) + row * p.x_stride;
    quantize_row_plain(p.quantized, row, p.cols, [&](std::int64_t c) { return to_float(x[c]); });
  }
}

}  // namespace onerec::cuda::kernels
