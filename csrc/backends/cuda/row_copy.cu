#include "backends/cuda/row_copy.h"

#include <algorithm>

#include "backends/cuda/alignment.h"
#include "backends/cuda/launch.h"

namespace onerec::cuda {
namespace {

bool at_vectors(const void* data, std::int64_t stride, DType dtype) {
  return at_vector(data) && static_cast<std::size_t>(stride) * size_of(dtype) % 16 == 0;
}

template <class T, int kN>
void launch_sum(Stream& stream, const char* name, const kernels::SumRowsArguments& p, int multiprocessors) {
  const SlotGrid grid = slot_grid(p.rows, p.cols / kN, multiprocessors);
  launch(stream, name, kernels::sum_rows_kernel<T, kN>, {dim3(grid.row_blocks, grid.slot_blocks), kSlotThreads}, p);
}

}  // namespace

SlotGrid slot_grid(std::int64_t rows, std::int64_t slots, int multiprocessors) {
  if (rows == 0 || slots == 0) return {};
  constexpr std::int64_t kResidentBlocks = 8;
  const std::int64_t slot_blocks = (slots + kSlotThreads - 1) / kSlotThreads;
  const std::int64_t rows_per_block = std::max<std::int64_t>(1, kSlotThreads / slots);
  const std::int64_t row_blocks = (rows + rows_per_block - 1) / rows_per_block;
  const std::int64_t most = std::max<std::int64_t>(1, kResidentBlocks * multiprocessors / slot_blocks);
  return {static_cast<std::uint32_t>(std::min(row_blocks, most)), static_cast<std::uint32_t>(slot_blocks)};
}

void sum_rows(Stream& stream, const char* name, DType dtype, const kernels::SumRowsArguments& p, int multiprocessors) {
  const std::int64_t vector = 16 / static_cast<std::int64_t>(size_of(dtype));
  const bool vectors = p.cols % vector == 0 && at_vectors(p.a.data, p.a.stride, dtype) &&
                       (p.b.data == nullptr || at_vectors(p.b.data, p.b.stride, dtype)) &&
                       at_vectors(p.out, p.out_stride, dtype);
  if (dtype == DType::kF32) {
    vectors ? launch_sum<float, kernels::kVector<float>>(stream, name, p, multiprocessors)
            : launch_sum<float, 1>(stream, name, p, multiprocessors);
  } else {
    vectors ? launch_sum<kernels::bf16, kernels::kVector<kernels::bf16>>(stream, name, p, multiprocessors)
            : launch_sum<kernels::bf16, 1>(stream, name, p, multiprocessors);
  }
}

}  // namespace onerec::cuda
