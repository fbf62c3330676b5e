// Embeddings and raw features of a token side by side.
#pragma once

#include "backends/cuda/kernels/column_slots.cuh"
#include "backends/cuda/kernels/grid_dependency.cuh"

namespace onerec::cuda::kernels {

inline constexpr int kMaxFields = 64;

// Columns [column, column + width) of the output. With a table ([., width] of the output's type), token t's are row
// source[t * source_stride] of it; without one, the FP32 values at source + t * source_stride.
struct EmbedField {
  std::int32_t column = 0;
  std::int32_t width = 0;
  const void* table = nullptr;
  const void* source = nullptr;
  std::int64_t source_stride = 0;
};

struct EmbedContextArguments {
  std::int64_t tokens = 0;
  const std::int32_t* count = nullptr;
  void* out = nullptr;
  std::int64_t out_stride = 0;
  std::int32_t cols = 0;  // those behind the last field become 0
  std::int32_t fields = 0;
  EmbedField field[kMaxFields] = {};  // in column order, without gaps
};

template <class T>
__device__ __forceinline__ T embedded_element(const EmbedContextArguments& p, int field, std::int64_t token,
                                              int column) {
  while (field < p.fields && column >= p.field[field].column + p.field[field].width) ++field;
  if (field >= p.fields) return from_float<T>(0.0f);
  const EmbedField& at = p.field[field];
  const std::int64_t source = token * at.source_stride;
  if (at.table == nullptr) return from_float<T>(static_cast<const float*>(at.source)[source + column - at.column]);
  const std::int64_t id = static_cast<const std::int32_t*>(at.source)[source];
  return static_cast<const T*>(at.table)[id * at.width + column - at.column];
}

// kN = 1 takes anything; with kN = a vector of T, the rows of the output are aligned to vectors. A thread whose columns
// lie in one table, aligned there too, copies vectors.
template <class T, int kN>
__global__ void __launch_bounds__(256) embed_context_kernel(const __grid_constant__ EmbedContextArguments p) {
  static_assert(kN == 1 || kN == kVector<T>, "elements or vectors");
  overlap_with_neighbours();
  const std::int64_t live = p.count == nullptr ? p.tokens : *p.count;
  const ColumnSlots at = column_slots((p.cols + kN - 1) / kN);
  const std::int64_t first_column = at.slot * kN;
  if (first_column >= p.cols) return;
  const int column = static_cast<int>(first_column);
  int field = 0;
  while (field < p.fields && column >= p.field[field].column + p.field[field].width) ++field;

  if constexpr (kN > 1) {
    if (field < p.fields && p.field[field].table != nullptr) {
      const EmbedField& of = p.field[field];
      const T* const table = static_cast<const T*>(of.table) + (column - of.column);
      const bool aligned = reinterpret_cast<std::uintptr_t>(table) % 16 == 0 && of.width % kN == 0;
      if (aligned && column + kN <= of.column + of.width) {
        const auto* const ids = static_cast<const std::int32_t*>(of.source);
        for (std::int64_t first = at.first_row; first < live; first += kRowsAtOnce * at.row_step) {
          std::int64_t id[kRowsAtOnce];
          uint4 vector[kRowsAtOnce];
#pragma unroll
          for (int k = 0; k < kRowsAtOnce; ++k) {
            const std::int64_t token = first + k * at.row_step;
            if (token < live) id[k] = ids[token * of.source_stride];
          }
#pragma unroll
          for (int k = 0; k < kRowsAtOnce; ++k) {
            if (first + k * at.row_step < live) vector[k] = load_vector(table + id[k] * of.width);
          }
#pragma unroll
          for (int k = 0; k < kRowsAtOnce; ++k) {
            const std::int64_t token = first + k * at.row_step;
            if (token < live) store_vector(static_cast<T*>(p.out) + token * p.out_stride + column, vector[k]);
          }
        }
        return;
      }
    }
  }
  const int end = min(column + kN, p.cols);
  for (std::int64_t token = at.first_row; token < live; token += at.row_step) {
    T* const out = static_cast<T*>(p.out) + token * p.out_stride;
    for (int c = column; c < end; ++c) out[c] = embedded_element<T>(p, field, token, c);
  }
}

}  // namespace onerec::cuda::kernels
