#include "ops/tap.h"

namespace onerec {

void observe(OpContext& context, std::string_view weight, const Operand& operand, const Extent& rows) {
  if (context.tap == nullptr) return;
  std::int64_t live = rows.capacity;
  if (rows.count != nullptr) {
    std::int32_t count = 0;
    context.stream.copy_to_host(&count, rows.count, sizeof(count));
    context.stream.synchronize();
    live = count;
  }
  context.tap->observe(weight, operand, live);
}

}  // namespace onerec
