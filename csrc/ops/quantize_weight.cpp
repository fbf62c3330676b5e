#include "ops/quantize_weight.h"

#include <algorithm>
#include <cmath>

#include "core/bfloat16.h"
#include "core/error.h"
#include "core/float8.h"
#include "ops/operand.h"

namespace onerec {
namespace {

// A rectangle of the weight that shares a scale.
struct Group {
  std::int64_t row_begin, row_end, column_begin, column_end;
};

template <class T>
float quantize_group(const T* values, std::int64_t k, const Group& group, std::uint8_t* codes) {
  float amax = 0.0f;
  for (std::int64_t r = group.row_begin; r < group.row_end; ++r) {
    for (std::int64_t c = group.column_begin; c < group.column_end; ++c) {
      const float magnitude = std::abs(to_float(values[r * k + c]));
      amax = magnitude > amax || std::isnan(magnitude) ? magnitude : amax;
    }
  }
  const float scale = e4m3_scale(amax);
  const float inverse = 1.0f / scale;
  for (std::int64_t r = group.row_begin; r < group.row_end; ++r) {
    for (std::int64_t c = group.column_begin; c < group.column_end; ++c) {
      codes[r * k + c] = to_e4m3(to_float(values[r * k + c]) * inverse);
    }
  }
  return scale;
}

template <class T>
void quantize_groups(const T* values, std::int64_t n, std::int64_t k, std::int64_t height, std::int64_t width,
                     std::uint8_t* codes, float* scales) {
  for (std::int64_t r = 0; r < n; r += height) {
    for (std::int64_t c = 0; c < k; c += width) {
      *scales++ = quantize_group(values, k, {r, std::min(r + height, n), c, std::min(c + width, k)}, codes);
    }
  }
}

void quantize_groups(DType dtype, const void* values, std::int64_t n, std::int64_t k, std::int64_t height,
                     std::int64_t width, std::uint8_t* codes, float* scales) {
  require(dtype == DType::kF32 || dtype == DType::kBF16, "[quantize_weight] got values of ", name_of(dtype),
          ", want float32 or bfloat16. Convert them first.");
  require(n >= 0 && k >= 1, "[quantize_weight] got a weight [", n, ", ", k,
          "], want at least [0, 1]. Correct the shape.");
  if (dtype == DType::kF32) {
    quantize_groups(static_cast<const float*>(values), n, k, height, width, codes, scales);
  } else {
    quantize_groups(static_cast<const BFloat16*>(values), n, k, height, width, codes, scales);
  }
}

}  // namespace

void quantize_channel(DType dtype, const void* values, std::int64_t n, std::int64_t k, std::uint8_t* codes,
                      float* scales) {
  quantize_groups(dtype, values, n, k, 1, k, codes, scales);
}

void quantize_block(DType dtype, const void* values, std::int64_t n, std::int64_t k, std::uint8_t* codes,
                    float* scales) {
  quantize_groups(dtype, values, n, k, kScaleBlock, kScaleBlock, codes, scales);
}

}  // namespace onerec
