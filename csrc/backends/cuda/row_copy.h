// Issues sum_rows_kernel (kernels/sum_rows.cuh) for the ops that pick rows of embedding tables.
#pragma once

#include "backends/cuda/kernels/sum_rows.cuh"
#include "core/dtype.h"
#include "ops/device.h"

namespace onerec::cuda {

// The grid of a kernel over column slots.
struct SlotGrid {
  std::uint32_t row_blocks = 0;
  std::uint32_t slot_blocks = 0;
};

inline constexpr std::uint32_t kSlotThreads = 256;

SlotGrid slot_grid(std::int64_t rows, std::int64_t slots, int multiprocessors);

// `dtype`: FP32 or BF16, of both inputs and the output.
void sum_rows(Stream& stream, const char* name, DType dtype, const kernels::SumRowsArguments& arguments,
              int multiprocessors);

}  // namespace onerec::cuda
