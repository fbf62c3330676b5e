#include "ops/embed_step.h"

#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/row_copy.h"

namespace onerec::cuda {

void CudaBackend::embed_step(Stream& stream, const EmbedStepParams& p) {
  const kernels::SumRowsArguments arguments{
      .rows = p.rows.capacity,
      .count = p.rows.count,
      .cols = p.h.cols,
      .a = {.data = p.table, .stride = p.h.cols, .index = p.codes, .index_stride = p.code_stride, .step = 0},
      .b = {.data = p.position, .step = 0},
      .out = p.h.data,
      .out_stride = p.h.stride};
  sum_rows(stream, "embed_step", p.h.dtype, arguments, limits_.multiprocessors);
}

}  // namespace onerec::cuda
