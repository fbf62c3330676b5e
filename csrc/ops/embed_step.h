// The decoder's input rows: the embedding of the code each beam chose last, or of BOS.
#pragma once

#include "ops/context.h"

namespace onerec {

// A step's first op. Where kernels may begin before the one ahead of them has ended, no kernel of an op that is issued
// behind this one begins before all that were issued ahead of it have ended: what these wrote is settled.
//
// h[r] = round(table[codes[r * code_stride]] + position); codes = null: row 0 of the table for every row (BOS).
struct EmbedStepParams {
  const void* table = nullptr;  // [table_rows, width] of h's dtype
  std::int64_t table_rows = 0;
  const std::int32_t* codes = nullptr;
  std::int64_t code_stride = 1;
  const void* position = nullptr;  // [width] of h's dtype, or null
  Matrix h = {};                   // [rows, width], FP32 or BF16
  Extent rows = {};
};

void embed_step(OpContext& context, const EmbedStepParams& params);

}  // namespace onerec
