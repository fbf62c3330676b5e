// The input of a context pathway's first linear: every token's embeddings and raw features side by side.
#pragma once

#include <vector>

#include "ops/context.h"

namespace onerec {

struct EmbeddingTable {
  const void* data = nullptr;  // [rows, width] of the output's dtype, contiguous
  std::int64_t rows = 0;
  std::int64_t width = 0;
};

// One piece of the concatenation, in column order.
struct ContextField {
  enum class Kind : std::uint8_t { kSemanticId, kCategorical, kDense } kind = Kind::kDense;
  std::int64_t index = 0;  // the level, or the first column of `categorical` or `dense`
  std::int64_t width = 0;
  EmbeddingTable table = {};  // of kSemanticId and kCategorical
};

// Ids are checked by the caller; columns behind the last field are set to 0.
struct EmbedContextParams {
  std::vector<ContextField> fields = {};
  const std::int32_t* codes = nullptr;  // [tokens, levels]
  std::int64_t levels = 0;
  const std::int32_t* categorical = nullptr;  // [tokens, num_categorical]
  std::int64_t num_categorical = 0;
  const float* dense = nullptr;  // [tokens, num_dense]
  std::int64_t num_dense = 0;
  Matrix out = {};  // [tokens, padded width], FP32 or BF16
  Extent tokens = {};
};

void embed_context(OpContext& context, const EmbedContextParams& params);

// context[rows[i]] = round(x[i] + positions_table[positions[i]]); without a table, a plain scatter.
struct ScatterContextParams {
  ConstMatrix x = {};                       // [tokens, d_context], FP32 or BF16
  EmbeddingTable position_table = {};       // data = null: no position embedding
  const std::int32_t* positions = nullptr;  // [tokens]
  const std::int32_t* rows = nullptr;       // [tokens], distinct
  Matrix out = {};                          // [context tokens, d_context] of x's dtype
  Extent tokens = {};
};

void scatter_context(OpContext& context, const ScatterContextParams& params);

}  // namespace onerec
