#include "ops/embed_step.h"

#include "ops/backend.h"
#include "ops/checks.h"

namespace onerec {

void embed_step(OpContext& context, const EmbedStepParams& params) {
  constexpr const char* kOp = "embed_step";
  check_extent(kOp, "rows", params.rows);
  check_matrix(kOp, "h", params.h, {DType::kF32, DType::kBF16}, params.rows.capacity, params.h.cols);
  check_pointer(kOp, "table", params.table);
  check_at_least(kOp, "table_rows", params.table_rows, 1);
  if (params.codes != nullptr) check_at_least(kOp, "code_stride", params.code_stride, 1);

  if (!workspace_ready(context, kOp, 0)) return;
  context.backend.embed_step(context.stream, params);
}

}  // namespace onerec
