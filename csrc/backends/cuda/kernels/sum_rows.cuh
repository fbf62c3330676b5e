// Rows picked by indices, alone or as the sum of two, written to rows picked by indices.
#pragma once

#include "backends/cuda/kernels/column_slots.cuh"
#include "backends/cuda/kernels/grid_dependency.cuh"

namespace onerec::cuda::kernels {

// Of output i: row index[i * index_stride], or without an index row i * step.
struct PickedRows {
  const void* data = nullptr;
  std::int64_t stride = 0;
  const std::int32_t* index = nullptr;
  std::int64_t index_stride = 1;
  std::int64_t step = 1;
};

__device__ __forceinline__ std::int64_t picked_row(const PickedRows& rows, std::int64_t i) {
  return rows.index == nullptr ? i * rows.step : rows.index[i * rows.index_stride];
}

struct SumRowsArguments {
  std::int64_t rows = 0;
  const std::int32_t* count = nullptr;
  std::int64_t cols = 0;
  PickedRows a = {};
  PickedRows b = {};  // data = null: a alone, bit for bit
  void* out = nullptr;
  std::int64_t out_stride = 0;
  const std::int32_t* out_rows = nullptr;  // null: row i
};

// kN = 1 takes anything. With kN = a vector of T, cols is a multiple of it and all rows are aligned to vectors.
template <class T, int kN>
__global__ void __launch_bounds__(256) sum_rows_kernel(SumRowsArguments p) {
  static_assert(kN == 1 || kN == kVector<T>, "elements or vectors");
  using Piece = std::conditional_t<kN == 1, T, uint4>;
  // In this order, because of embed_step(): what is settled behind it.
  wait_for_previous_kernel();
  allow_next_kernel();
  const std::int64_t live = p.count == nullptr ? p.rows : *p.count;
  const ColumnSlots at = column_slots(p.cols / kN);
  const std::int64_t column = at.slot * kN;
  if (column >= p.cols) return;
  const auto piece_of = [&](const PickedRows& rows, std::int64_t row) {
    return *reinterpret_cast<const Piece*>(static_cast<const T*>(rows.data) + row * rows.stride + column);
  };
  for (std::int64_t first = at.first_row; first < live; first += kRowsAtOnce * at.row_step) {
    std::int64_t from[kRowsAtOnce];
    std::int64_t to[kRowsAtOnce];
    Piece a[kRowsAtOnce];
    Piece b[kRowsAtOnce];
#pragma unroll
    for (int k = 0; k < kRowsAtOnce; ++k) {
      const std::int64_t i = first + k * at.row_step;
      if (i >= live) continue;
      from[k] = picked_row(p.a, i);
      to[k] = p.out_rows == nullptr ? i : p.out_rows[i];
      if (p.b.data != nullptr) b[k] = piece_of(p.b, picked_row(p.b, i));
    }
#pragma unroll
    for (int k = 0; k < kRowsAtOnce; ++k) {
      if (first + k * at.row_step < live) a[k] = piece_of(p.a, from[k]);
    }
#pragma unroll
    for (int k = 0; k < kRowsAtOnce; ++k) {
      if (first + k * at.row_step >= live) continue;
      if (p.b.data != nullptr) {
        if constexpr (kN == 1) {
          a[k] = from_float<T>(to_float(a[k]) + to_float(b[k]));
        } else {
          float sum[kN];
          float second[kN];
          unpack<T>(a[k], sum);
          unpack<T>(b[k], second);
#pragma unroll
          for (int j = 0; j < kN; ++j) sum[j] += second[j];
          a[k] = pack<T>(sum);
        }
      }
      *reinterpret_cast<Piece*>(static_cast<T*>(p.out) + to[k] * p.out_stride + column) = a[k];
    }
  }
}

}  // namespace onerec::cuda::kernels
