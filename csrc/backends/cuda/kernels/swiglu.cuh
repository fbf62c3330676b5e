// silu(gate) * up, stored or quantised.
#pragma once

#include "backends/cuda/kernels/grid_dependency.cuh"
#include "backends/cuda/kernels/row_quantize.cuh"

namespace onerec::cuda::kernels {

// Row r has its gates at gate_up + r * stride and its ups `width` columns behind them. With codes per row, parts = 1;
// with quantized.kind = kNone, y (of T) is written.
struct SwigluArguments {
  RowParts rows = {};
  std::int64_t width = 0;
  const void* gate_up = nullptr;
  std::int64_t stride = 0;
  void* y = nullptr;
  std::int64_t y_stride = 0;
  CodeRows quantized = {};
};

// The denominator is at least 1, where the device's own reciprocal is within 1 unit in the last place (0 from 2^126,
// as for infinity): a division by the rules would cost more than the exponential.
__device__ __forceinline__ float silu_product(float gate, float up) {
  return gate * approximate_inverse(1.0f + expf(-gate)) * up;
}

// `width` is a multiple of a vector of T; gate_up, y and their rows are aligned to vectors, the codes to as many codes.
template <class T, class Team, int kVectors>
__global__ void __launch_bounds__(Team::kMaxThreads, kResidentThreads / Team::kMaxThreads)
    swiglu_kernel(const __grid_constant__ SwigluArguments p) {
  overlap_with_neighbours();
  constexpr int kN = kVector<T>;
  struct Held {
    uint4 gates[kVectors], ups[kVectors];
  };
  Team team;
  // A gate and its up one after the other, in the order in which they are used.
  const auto load = [&](const RowPart& at) {
    const T* const row = static_cast<const T*>(p.gate_up) + at.row * p.stride;
    Held held;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      held.gates[i] = load_row_vector<T, Team>(row, at, i);
      held.ups[i] = load_row_vector<T, Team>(row + p.width, at, i);
    }
    return held;
  };
  const auto process = [&](const RowPart& at, const Held& held) {
    float values[kVectors][kN];
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      float up[kN];
      unpack<T>(held.gates[i], values[i]);
      unpack<T>(held.ups[i], up);
#pragma unroll
      for (int j = 0; j < kN; ++j) values[i][j] = silu_product(values[i][j], up[j]);
    }
    if (p.quantized.kind != Codes::kNone) {
      quantize_part(team, p.quantized, at, values);
      return;
    }
    T* const y = static_cast<T*>(p.y) + at.row * p.y_stride;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int vector = row_vector<Team>(at, i);
      if (vector < at.end) store_vector(y + static_cast<std::int64_t>(vector) * kN, pack<T>(values[i]));
    }
  };
  // Several blocks share a multiprocessor, and one loads while another computes.
  for_row_parts<Team, Ahead::kNothing>(p.rows, load, process);
}

// Any width and alignment. A block takes a row at a time; of p.rows only the numbers of rows are used.
template <class T>
__global__ void __launch_bounds__(256) swiglu_plain_kernel(SwigluArguments p) {
  overlap_with_neighbours();
  const std::int64_t live = p.rows.count == nullptr ? p.rows.rows : *p.rows.count;
  for (std::int64_t row = blockIdx.x; row < live; row += gridDim.x) {
    const T* const gates = static_cast<const T*>(p.gate_up) + row * p.stride;
    const auto product = [&](std::int64_t c) { return silu_product(to_float(gates[c]), to_float(gates[p.width + c])); };
    if (p.quantized.kind != Codes::kNone) {
      quantize_row_plain(p.quantized, row, p.width, product);
      continue;
    }
    T* const y = static_cast<T*>(p.y) + row * p.y_stride;
    for (std::int64_t c = threadIdx.x; c < p.width; c += blockDim.x) y[c] = from_float<T>(product(c));
  }
}

}  // namespace onerec::cuda::kernels
