// y = x * rstd * gamma, rstd = 1 / sqrt(mean(x^2) + eps).
#pragma once

#include "ops/context.h"
#include "ops/operand.h"

namespace onerec {

// Each row of x holds `groups` consecutive groups of gamma's width, each normalised on its own (groups = 1: RMSNorm of
// the row; groups = heads: qk-norm). Any of the outputs may be asked for together; `y` may be x itself. gamma is a
// weight: nothing that is still under way in the stream writes it.
//
// Codes per row are e4m3(x * gamma / s) with s = root_power(mean(x^2)) * norm_code_scale(gamma_magnitude)
// (core/float8.h), and the row's scale is s * rstd, or NaN where mean(x^2) is not finite. Codes per block are those of
// quantize() of the FP32 norm value.
struct RmsNormParams {
  ConstMatrix x = {};            // [rows, groups * width], FP32 or BF16
  const float* gamma = nullptr;  // [width]
  std::int64_t width = 0;
  std::int64_t groups = 1;
  float eps = 1e-6f;
  float gamma_magnitude = -1.0f;  // the largest of gamma, for codes per row; negative: not known
  Matrix y = {};                  // [rows, groups * width] of FP32 or BF16, or data = null
  Operand quantized = {};         // E4M3 codes, kPerRow or kPerBlock, groups = 1; or data = null
  Operand quantized_blocks = {};  // beside kPerRow codes in `quantized`: those of kPerBlock; or data = null
  Extent rows = {};
};

void rms_norm(OpContext& context, const RmsNormParams& params);

// For ops that end with a norm of the matrix that they make: it reads `x`, the same rows, as a single group.
void check_norm_of(const char* op, const RmsNormParams& norm, const ConstMatrix& x, const Extent& rows);

// What the norm writes is apart from the first rows of `other`.
void check_norm_apart(const OpContext& context, const char* op, const RmsNormParams& norm, const char* name,
                      const ConstMatrix& other);

}  // namespace onerec
