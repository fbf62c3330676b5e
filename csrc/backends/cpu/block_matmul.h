// Small FP32 matrix products and softmax rows for attention: single-threaded, register-blocked, no allocation.
#pragma once

#include <cstdint>
#include <vector>

namespace onerec::cpu {

// Columns are padded to this many floats.
inline constexpr std::int64_t kColumnBlock = 16;
// Width of a panel of a transposed matrix.
inline constexpr std::int64_t kPanel = 64;

constexpr std::int64_t pad_columns(std::int64_t cols) {
  return (cols + kColumnBlock - 1) / kColumnBlock * kColumnBlock;
}

struct BlockMatmul {
  const float* a = nullptr;  // [rows, inner]
  std::int64_t a_stride = 0;
  const float* b = nullptr;  // [inner, cols]
  std::int64_t b_stride = 0;
  float* c = nullptr;  // [rows, cols]
  std::int64_t c_stride = 0;
  std::int64_t rows = 0;
  std::int64_t cols = 0;  // a multiple of kColumnBlock
  std::int64_t inner = 0;
};

// The set of kernels for this machine, chosen once. An element of c is the same chain of additions over `inner`
// whatever the other sizes are, so that a row does not depend on the rows beside it.
struct BlockKernels {
  const char* name;
  // c = scale * (a b).
  void (*multiply)(const BlockMatmul& m, float scale);
  // c = c + a b.
  void (*accumulate)(const BlockMatmul& m);
  // panels[n / kPanel][d][n % kPanel] = x[n, d] for n < rows; columns up to pad_columns(rows) are 0.
  void (*transpose)(const float* x, std::int64_t stride, std::int64_t rows, std::int64_t cols, float* panels);
  // row[n] = exp(row[n] - max row), as it is or rounded to BF16, for n < count; returns the sum of the unrounded ones.
  // The row has pad_columns(count) elements, of which those behind `count` are overwritten.
  float (*softmax_f32)(float* row, std::int64_t count);
  float (*softmax_bf16)(float* row, std::int64_t count);
};

const BlockKernels& block_kernels();

// Every set that this machine can run, the best first; the tests try them all.
std::vector<const BlockKernels*> usable_block_kernels();

}  // namespace onerec::cpu
