// One row to E4M3 codes and scales, from values that are made on the fly.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "backends/cpu/convert.h"
#include "backends/cpu/vector_math.h"
#include "ops/operand.h"

namespace onerec::cpu {

// Columns that are held on the stack between the search for the largest magnitude and the conversion. Wider rows are
// made twice.
inline constexpr std::int64_t kQuantizeRun = 4096;

// make(begin, count, out) writes columns [begin, begin + count) of the row as FP32, the same bits whenever asked; a run
// that begins at 0 comes first.
template <class Make>
ONEREC_INLINE void quantize_row(const Operand& to, std::int64_t r, Make&& make) {
  float values[kQuantizeRun];
  const std::int64_t cols = to.values.cols;
  auto* const codes = to.values.row<std::uint8_t>(r);

  if (to.scale_kind == ScaleKind::kPerRow && cols > kQuantizeRun) {
    float amax = 0.0f;
    for (std::int64_t begin = 0; begin < cols; begin += kQuantizeRun) {
      const std::int64_t count = std::min(kQuantizeRun, cols - begin);
      make(begin, count, values);
      const float largest = largest_magnitude(values, count);
      amax = largest > amax || std::isnan(largest) ? largest : amax;
    }
    const float scale = e4m3_scale(amax);
    to.scales[r] = scale;
    for (std::int64_t begin = 0; begin < cols; begin += kQuantizeRun) {
      const std::int64_t count = std::min(kQuantizeRun, cols - begin);
      make(begin, count, values);
      f32_to_e4m3(values, 1.0f / scale, codes + begin, count);
    }
    return;
  }

  static_assert(kQuantizeRun % kScaleBlock == 0);
  for (std::int64_t begin = 0; begin < cols; begin += kQuantizeRun) {
    const std::int64_t count = std::min(kQuantizeRun, cols - begin);
    make(begin, count, values);
    const std::int64_t group = to.scale_kind == ScaleKind::kPerRow ? count : kScaleBlock;
    for (std::int64_t first = 0; first < count; first += group) {
      const std::int64_t width = std::min(group, count - first);
      const float scale = e4m3_scale(largest_magnitude(values + first, width));
      to.scales[(begin + first) / kScaleBlock * to.scale_stride + r] = scale;
      f32_to_e4m3(values + first, 1.0f / scale, codes + begin + first, width);
    }
  }
}

}  // namespace onerec::cpu
