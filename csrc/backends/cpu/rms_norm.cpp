#include "ops/rms_norm.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/parallel.h"
#include "backends/cpu/quantize_row.h"
#include "core/multiversion.h"

namespace onerec::cpu {
namespace {

// The sum is kept in this many parts, whatever the vectors of the machine: fewer roundings lie on each other, and all
// machines agree.
constexpr std::int64_t kParts = 32;

template <class T>
ONEREC_INLINE float sum_of_squares(const T* x, std::int64_t width) {
  float parts[kParts] = {};
  std::int64_t begin = 0;
  for (; begin + kParts <= width; begin += kParts) {
#pragma omp simd
    for (std::int64_t i = 0; i < kParts; ++i) parts[i] += to_float(x[begin + i]) * to_float(x[begin + i]);
  }
  for (std::int64_t i = 0; begin + i < width; ++i) parts[i] += to_float(x[begin + i]) * to_float(x[begin + i]);
  for (std::int64_t half = kParts / 2; half > 0; half /= 2) {
    for (std::int64_t i = 0; i < half; ++i) parts[i] += parts[i + half];
  }
  return parts[0];
}

// `y` may be `x`: element i is read before it is written.
template <class X, class Y>
ONEREC_INLINE void scale_to(const X* x, float rstd, const float* gamma, Y* y, std::int64_t count) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) y[i] = round_to<Y>(to_float(x[i]) * rstd * gamma[i]);
}

// Codes per row (ops/rms_norm.h). The products with gamma are rounded to FP32, those with 1 / scale are exact.
template <class X>
ONEREC_INLINE void code_row(const RmsNormParams& p, std::int64_t r, float mean, float rstd) {
  float values[kQuantizeRun];
  const X* const x = p.x.row<X>(r);
  auto* const codes = p.quantized.values.row<std::uint8_t>(r);
  const float scale = root_power(mean) * norm_code_scale(p.gamma_magnitude);
  p.quantized.scales[r] = std::isfinite(mean) ? scale * rstd : std::numeric_limits<float>::quiet_NaN();
  for (std::int64_t begin = 0; begin < p.width; begin += kQuantizeRun) {
    const std::int64_t count = std::min(kQuantizeRun, p.width - begin);
    scale_to(x + begin, 1.0f, p.gamma + begin, values, count);
    f32_to_e4m3(values, 1.0f / scale, codes + begin, count);
  }
}

template <class X>
ONEREC_INLINE void norm_rows(const RmsNormParams& p, std::int64_t begin, std::int64_t end) {
  for (std::int64_t r = begin; r < end; ++r) {
    for (std::int64_t group = 0; group < p.groups; ++group) {
      const std::int64_t first = group * p.width;
      const X* x = p.x.row<X>(r) + first;
      const float mean = sum_of_squares(x, p.width) / static_cast<float>(p.width);
      const float rstd = 1.0f / std::sqrt(mean + p.eps);
      // The codes first: `y` may overwrite x.
      for (const Operand* codes : {&p.quantized, &p.quantized_blocks}) {
        if (codes->values.data == nullptr) continue;
        if (codes->scale_kind == ScaleKind::kPerRow) {
          code_row<X>(p, r, mean, rstd);
          continue;
        }
        quantize_row(*codes, r, [&](std::int64_t column, std::int64_t count, float* out) {
          scale_to(x + column, rstd, p.gamma + column, out, count);
        });
      }
      if (p.y.data == nullptr) continue;
      if (p.y.dtype == DType::kF32) {
        scale_to(x, rstd, p.gamma, p.y.row<float>(r) + first, p.width);
      } else {
        scale_to(x, rstd, p.gamma, p.y.row<BFloat16>(r) + first, p.width);
      }
    }
  }
}

ONEREC_MULTIVERSION
void norm_f32(const RmsNormParams& p, std::int64_t begin, std::int64_t end) { norm_rows<float>(p, begin, end); }

ONEREC_MULTIVERSION
void norm_bf16(const RmsNormParams& p, std::int64_t begin, std::int64_t end) { norm_rows<BFloat16>(p, begin, end); }

}  // namespace

void CpuBackend::rms_norm(Stream& stream, const RmsNormParams& params) {
  submit(stream, [params] {
    for_rows(live(params.rows), params.x.cols, [&](std::int64_t begin, std::int64_t end) {
      params.x.dtype == DType::kF32 ? norm_f32(params, begin, end) : norm_bf16(params, begin, end);
    });
  });
}

}  // namespace onerec::cpu
