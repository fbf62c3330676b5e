#include "backends/cpu/epilogue.h"

#include <algorithm>

#include "backends/cpu/vector_math.h"
#include "core/bfloat16.h"
#include "core/multiversion.h"

namespace onerec::cpu {
namespace {

// A run of columns of one row is finished in this much of the stack: short loops over it vectorise, whatever steps
// there are.
constexpr std::int64_t kRun = 256;

template <class T>
ONEREC_INLINE void finish_run(const Epilogue& e, std::int64_t r, std::int64_t begin, std::int64_t count) {
  float values[kRun];
  const float* sums = e.sums + r * e.y.cols + begin;
  if (e.row_scales != nullptr) {
    const float row_scale = e.row_scales[r];
    const float* column_scales = e.column_scales + begin;
#pragma omp simd
    for (std::int64_t c = 0; c < count; ++c) values[c] = row_scale * (column_scales[c] * sums[c]);
  } else {
#pragma omp simd
    for (std::int64_t c = 0; c < count; ++c) values[c] = sums[c];
  }
  if (e.bias != nullptr) {
    const float* bias = e.bias + begin;
#pragma omp simd
    for (std::int64_t c = 0; c < count; ++c) values[c] += bias[c];
  }
  if (e.leaky_relu) {
    const float slope = e.negative_slope;
#pragma omp simd
    for (std::int64_t c = 0; c < count; ++c) values[c] = values[c] > 0.0f ? values[c] : slope * values[c];
  }
  T* y = e.y.row<T>(r) + begin;
  if (e.residual.data != nullptr) {
    const T* residual =
        e.residual.row<T>(r) + begin;  // y itself or apart from it: element c is read before it is written
#pragma omp simd
    for (std::int64_t c = 0; c < count; ++c) y[c] = round_to<T>(to_float(residual[c]) + values[c]);
  } else {
#pragma omp simd
    for (std::int64_t c = 0; c < count; ++c) y[c] = round_to<T>(values[c]);
  }
}

// Most linears of a decoder only add the residual, or nothing: the sums then go straight to y.
template <class T>
ONEREC_INLINE void finish_plain(const Epilogue& e) {
  const std::int64_t cols = e.y.cols;
  for (std::int64_t r = 0; r < e.y.rows; ++r) {
    const float* sums = e.sums + r * cols;
    T* y = e.y.row<T>(r);
    if (e.residual.data != nullptr) {
      const T* residual = e.residual.row<T>(r);
#pragma omp simd
      for (std::int64_t c = 0; c < cols; ++c) y[c] = round_to<T>(to_float(residual[c]) + sums[c]);
    } else {
#pragma omp simd
      for (std::int64_t c = 0; c < cols; ++c) y[c] = round_to<T>(sums[c]);
    }
  }
}

template <class T>
ONEREC_INLINE void finish(const Epilogue& e) {
  if (e.row_scales == nullptr && e.bias == nullptr && !e.leaky_relu) {
    finish_plain<T>(e);
    return;
  }
  for (std::int64_t r = 0; r < e.y.rows; ++r) {
    for (std::int64_t begin = 0; begin < e.y.cols; begin += kRun) {
      finish_run<T>(e, r, begin, std::min(kRun, e.y.cols - begin));
    }
  }
}

ONEREC_MULTIVERSION
void finish_f32(const Epilogue& e) { finish<float>(e); }

ONEREC_MULTIVERSION
void finish_bf16(const Epilogue& e) { finish<BFloat16>(e); }

}  // namespace

void apply_epilogue(const Epilogue& epilogue) {
  epilogue.y.dtype == DType::kF32 ? finish_f32(epilogue) : finish_bf16(epilogue);
}

}  // namespace onerec::cpu
