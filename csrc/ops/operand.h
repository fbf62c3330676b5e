// The left-hand side of a matrix product, and where a quantised one is written.
#pragma once

#include <cstdint>

#include "core/float8.h"
#include "core/tensor_view.h"

namespace onerec {

// How many columns of a row share a scale.
enum class ScaleKind : std::uint8_t {
  kNone,      // values are not quantised
  kPerRow,    // one scale per row ("per token")
  kPerBlock,  // one scale per row and kScaleBlock consecutive columns ("1x128"); the last block may be shorter
};

constexpr std::int64_t scale_blocks(std::int64_t cols) { return (cols + kScaleBlock - 1) / kScaleBlock; }

// Activations [rows, cols]: FP32 or BF16 values, or E4M3 codes with FP32 scales.
// The scale of row r (and block b) is scales[b * scale_stride + r]; kPerRow has b = 0 only.
struct Operand {
  Matrix values = {};
  ScaleKind scale_kind = ScaleKind::kNone;
  float* scales = nullptr;
  std::int64_t scale_stride = 0;  // >= rows

  bool quantized() const { return scale_kind != ScaleKind::kNone; }
};

}  // namespace onerec
