#include "ops/embed_context.h"

#include <algorithm>

#include "backends/cuda/alignment.h"
#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/kernels/embed_context.cuh"
#include "backends/cuda/launch.h"
#include "backends/cuda/row_copy.h"

namespace onerec::cuda {
namespace {

using Kind = ContextField::Kind;

kernels::EmbedField field_of(const EmbedContextParams& p, const ContextField& field, std::int64_t column) {
  kernels::EmbedField result{.column = static_cast<std::int32_t>(column),
                             .width = static_cast<std::int32_t>(field.width)};
  switch (field.kind) {
    case Kind::kSemanticId:
      result.table = field.table.data;
      result.source = p.codes + field.index;
      result.source_stride = p.levels;
      break;
    case Kind::kCategorical:
      result.table = field.table.data;
      result.source = p.categorical + field.index;
      result.source_stride = p.num_categorical;
      break;
    case Kind::kDense:
      result.source = p.dense + field.index;
      result.source_stride = p.num_dense;
      break;
  }
  return result;
}

template <class T, int kN>
void launch_embed(Stream& stream, const kernels::EmbedContextArguments& arguments, int multiprocessors) {
  const SlotGrid grid = slot_grid(arguments.tokens, (arguments.cols + kN - 1) / kN, multiprocessors);
  launch(stream, "embed_context", kernels::embed_context_kernel<T, kN>,
         {dim3(grid.row_blocks, grid.slot_blocks), kSlotThreads}, arguments);
}

// Columns [begin, end) of the output.
void embed_columns(Stream& stream, const Matrix& out, std::int64_t begin, std::int64_t end,
                   kernels::EmbedContextArguments& arguments, int multiprocessors) {
  const Matrix columns = out.columns(begin, end - begin);
  arguments.out = columns.data;
  arguments.out_stride = columns.stride;
  arguments.cols = static_cast<std::int32_t>(columns.cols);
  if (out.dtype == DType::kF32) {
    rows_at_vectors(columns) ? launch_embed<float, kernels::kVector<float>>(stream, arguments, multiprocessors)
                             : launch_embed<float, 1>(stream, arguments, multiprocessors);
  } else {
    using kernels::bf16;
    rows_at_vectors(columns) ? launch_embed<bf16, kernels::kVector<bf16>>(stream, arguments, multiprocessors)
                             : launch_embed<bf16, 1>(stream, arguments, multiprocessors);
  }
}

}  // namespace

// A kernel takes so many fields; where there are more, the next one goes on behind their columns.
void CudaBackend::embed_context(Stream& stream, const EmbedContextParams& p) {
  std::size_t next = 0;
  std::int64_t begin = 0;
  do {
    kernels::EmbedContextArguments arguments{.tokens = p.tokens.capacity, .count = p.tokens.count};
    std::int64_t end = begin;
    for (; next < p.fields.size() && arguments.fields < kernels::kMaxFields; ++next) {
      arguments.field[arguments.fields++] = field_of(p, p.fields[next], end - begin);
      end += p.fields[next].width;
    }
    if (next == p.fields.size()) end = p.out.cols;
    embed_columns(stream, p.out, begin, end, arguments, limits_.multiprocessors);
    begin = end;
  } while (next < p.fields.size());
}

void CudaBackend::scatter_context(Stream& stream, const ScatterContextParams& p) {
  const kernels::SumRowsArguments arguments{
      .rows = p.tokens.capacity,
      .count = p.tokens.count,
      .cols = p.x.cols,
      .a = {.data = p.x.data, .stride = p.x.stride},
      .b = {.data = p.position_table.data, .stride = p.position_table.width, .index = p.positions},
      .out = p.out.data,
      .out_stride = p.out.stride,
      .out_rows = p.rows};
  sum_rows(stream, "scatter_context", p.x.dtype, arguments, limits_.multiprocessors);
}

}  // namespace onerec::cuda
