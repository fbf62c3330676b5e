// How kernels that copy or add rows share them out: a thread keeps to its columns and walks over the rows.
#pragma once

#include "backends/cuda/kernels/block.cuh"

namespace onerec::cuda::kernels {

// Row accesses of a thread that are under way at a time.
inline constexpr int kRowsAtOnce = 4;

// Slot s is the columns [s * kN, (s + 1) * kN). Slots are spread over the threads of a block, and over gridDim.y where
// a block has too few; a block with more threads than slots takes several rows at a time.
struct ColumnSlots {
  std::int64_t slot;       // of this thread; none if it is not below the number of slots
  std::int64_t first_row;  // then first_row + row_step, ...
  std::int64_t row_step;
};

__device__ __forceinline__ ColumnSlots column_slots(std::int64_t slots) {
  const auto thread = static_cast<std::int64_t>(threadIdx.x);
  const auto threads = static_cast<std::int64_t>(blockDim.x);
  if (slots >= threads) {
    return {static_cast<std::int64_t>(blockIdx.y) * threads + thread, blockIdx.x, gridDim.x};
  }
  const auto width = static_cast<std::uint32_t>(slots);
  const std::uint32_t rows = blockDim.x / width;
  const std::uint32_t row = threadIdx.x / width;
  return {row < rows ? threadIdx.x % width : slots, static_cast<std::int64_t>(blockIdx.x) * rows + row,
          static_cast<std::int64_t>(gridDim.x) * rows};
}

}  // namespace onerec::cuda::kernels
