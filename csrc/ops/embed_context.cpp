#include "ops/embed_context.h"

#include "core/error.h"
#include "ops/backend.h"
#include "ops/checks.h"

namespace onerec {
namespace {

using Kind = ContextField::Kind;

// A field reads `count` values from column `field.index` of an array with `columns` columns.
void check_source(const char* name, const void* data, const ContextField& field, std::int64_t count,
                  std::int64_t columns) {
  require(field.index >= 0 && field.index + count <= columns, "[embed_context] got a field of columns ", field.index,
          " to ", field.index + count, " of ", name, ", want columns within 0 to ", columns, ". Correct the field.");
  check_pointer("embed_context", name, data);
}

void check_field(const EmbedContextParams& params, const ContextField& field) {
  check_at_least("embed_context", "width of a field", field.width, 1);
  switch (field.kind) {
    case Kind::kSemanticId:
      check_source("codes", params.codes, field, 1, params.levels);
      break;
    case Kind::kCategorical:
      check_source("categorical", params.categorical, field, 1, params.num_categorical);
      break;
    case Kind::kDense:
      check_source("dense", params.dense, field, field.width, params.num_dense);
      return;
  }
  check_pointer("embed_context", "embedding table", field.table.data);
  require(field.table.width == field.width, "[embed_context] got a table of width ", field.table.width,
          " for a field of width ", field.width, ", want equal widths. Correct the field.");
}

}  // namespace

void embed_context(OpContext& context, const EmbedContextParams& params) {
  constexpr const char* kOp = "embed_context";
  check_extent(kOp, "tokens", params.tokens);
  check_matrix(kOp, "out", params.out, {DType::kF32, DType::kBF16}, params.tokens.capacity, params.out.cols);
  std::int64_t width = 0;
  for (const ContextField& field : params.fields) {
    if (params.tokens.capacity > 0) check_field(params, field);
    width += field.width;
  }
  require(width <= params.out.cols, "[embed_context] got fields of ", width, " columns in all, want at most the ",
          params.out.cols, " of out. Widen out.");

  if (!workspace_ready(context, kOp, 0)) return;
  context.backend.embed_context(context.stream, params);
}

void scatter_context(OpContext& context, const ScatterContextParams& params) {
  constexpr const char* kOp = "scatter_context";
  check_extent(kOp, "tokens", params.tokens);
  check_matrix(kOp, "x", params.x, {DType::kF32, DType::kBF16}, params.tokens.capacity, params.x.cols);
  check_matrix(kOp, "out", params.out, {params.x.dtype}, params.tokens.capacity, params.x.cols);
  if (params.tokens.capacity > 0) check_pointer(kOp, "rows", params.rows);
  if (params.position_table.data != nullptr) {
    require(params.position_table.width == params.x.cols, "[scatter_context] got positions of width ",
            params.position_table.width, ", want ", params.x.cols, ", the width of x. Correct the table.");
    if (params.tokens.capacity > 0) check_pointer(kOp, "positions", params.positions);
  }

  if (!workspace_ready(context, kOp, 0)) return;
  context.backend.scatter_context(context.stream, params);
}

}  // namespace onerec
