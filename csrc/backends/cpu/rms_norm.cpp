#include "ops/rms_norm.h"

#include <cmath>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/parallel.h"
#include "backends/cpu/quantize_row.h"
#include "core/multiversion.h"

namespace onerec::cpu {
namespace {

template <class T>
ONEREC_INLINE float reciprocal_deviation(const T* x, std::int64_t width, float eps) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < width; ++i) sum += to_float(x[i]) * to_float(x[i]);
  return 1.0f / std::sqrt(sum / static_cast<float>(width) + eps);
}

// `y` may be `x`: element i is read before it is written.
template <class X, class Y>
ONEREC_INLINE void scale_to(const X* x, float rstd, const float* gamma, Y* y, std::int64_t count) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) y[i] = round_to<Y>(to_float(x[i]) * rstd * gamma[i]);
}

template <class X>
ONEREC_INLINE void norm_rows(const RmsNormParams& p, std::int64_t begin, std::int64_t end) {
  for (std::int64_t r = begin; r < end; ++r) {
    for (std::int64_t group = 0; group < p.groups; ++group) {
      const std::int64_t first = group * p.width;
      const X* x = p.x.row<X>(r) + first;
      const float rstd = reciprocal_deviation(x, p.width, p.eps);
      // The codes first: `y` may overwrite x.
      if (p.quantized.values.data != nullptr) {
        quantize_row(p.quantized, r, [&](std::int64_t column, std::int64_t count, float* out) {
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
