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

// An RMSNorm that is left to the product that reads its codes. The codes are those of gamma * values, the scales powers
// of two, and each row of the product is still to be multiplied by 1 / sqrt(mean(values^2) + eps).
struct PendingNorm {
  // [rows]: the sum of values^2, in units of (scale * unit)^2 / 2^32. Null: nothing is pending.
  std::uint64_t* squares = nullptr;
  std::uint64_t* next_squares = nullptr;  // [rows]: those of the norm behind this one, which whoever makes it sets to 0
  std::int64_t width = 0;                 // columns that the mean is taken over
  float unit = 0.0f;                      // a power of two: a row's root_power() / scale
  float eps = 0.0f;
};

// Activations [rows, cols]: FP32 or BF16 values, or E4M3 codes with FP32 scales.
// The scale of row r (and block b) is scales[b * scale_stride + r]; kPerRow has b = 0 only.
struct Operand {
  Matrix values = {};
  ScaleKind scale_kind = ScaleKind::kNone;
  float* scales = nullptr;
  std::int64_t scale_stride = 0;  // >= rows
  PendingNorm pending = {};       // of kPerRow codes
  // Of kPerRow codes that an op is to write: a power of two by which no value that it can make is beyond 448. The op
  // may take it for the scale of every row in place of what each row's largest value asks for. 0: none is known.
  float static_scale = 0.0f;

  bool quantized() const { return scale_kind != ScaleKind::kNone; }
};

}  // namespace onerec
