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

__device__ __forceinline__ float silu_product(float gate, float up) { return gate / (1.0f + expf(-gate)) * up; }

// `width` is a multiple of a vector of T; gate_up, y and their rows are aligned to vectors, the codes to as many codes.
template <class T, class Team, int kVectors>
__global__ void __launch_bounds__(Team::kMaxThreads) swiglu_kernel(SwigluArguments p) {
  wait_for_previous_kernel();
  allow_next_kernel();
  constexpr int kN = kVector<T>;
  struct Held {
    RowVectors<kVectors> gates, ups;
  };
  const auto load = [&](const RowPart& at) {
    const T* const gates = static_cast<const T*>(p.gate_up) + at.row * p.stride;
    return Held{load_row_vectors<T, Team, kVectors>(gates, at),
                load_row_vectors<T, Team, kVectors>(gates + p.width, at)};
  };
  const auto process = [&](const RowPart& at, const Held& held) {
    float values[kVectors][kN];
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      float up[kN];
      unpack<T>(held.gates.vector[i], values[i]);
      unpack<T>(held.ups.vector[i], up);
#pragma unroll
      for (int j = 0; j < kN; ++j) values[i][j] = silu_product(values[i][j], up[j]);
    }
    if (p.quantized.kind != Codes::kNone) {
      quantize_part<Team>(p.quantized, at, values);
      return;
    }
    T* const y = static_cast<T*>(p.y) + at.row * p.y_stride;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int vector = row_vector<Team>(at, i);
      if (vector < at.end) store_vector(y + static_cast<std::int64_t>(vector) * kN, pack<T>(values[i]));
    }
  };
  for_row_parts<Team>(p.rows, load, process);
}

// Any width and alignment. A block takes a row at a time; of p.rows only the numbers of rows are used.
template <class T>
__global__ void __launch_bounds__(256) swiglu_plain_kernel(SwigluArguments p) {
  wait_for_previous_kernel();
  allow_next_kernel();
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
