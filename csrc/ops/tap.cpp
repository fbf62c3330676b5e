#include "ops/tap.h"

#include <vector>

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
  // The tap reads on the host.
  Operand copy = operand;
  const Matrix& values = operand.values;
  std::vector<std::byte> held(static_cast<std::size_t>(live * values.stride) * size_of(values.dtype));
  const std::size_t used =
      live == 0 ? 0 : held.size() - static_cast<std::size_t>(values.stride - values.cols) * size_of(values.dtype);
  context.stream.copy_to_host(held.data(), values.data, used);
  copy.values.data = held.data();
  std::vector<float> scales;
  if (operand.quantized() && live > 0) {
    const std::int64_t blocks = operand.scale_kind == ScaleKind::kPerRow ? 1 : scale_blocks(values.cols);
    scales.resize(static_cast<std::size_t>((blocks - 1) * operand.scale_stride + live));
    context.stream.copy_to_host(scales.data(), operand.scales, scales.size() * sizeof(float));
    copy.scales = scales.data();
  }
  context.stream.synchronize();
  context.tap->observe(weight, copy, live);
}

}  // namespace onerec
