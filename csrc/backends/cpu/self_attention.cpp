#include "ops/self_attention.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/parallel.h"
#include "backends/cpu/quantize_row.h"
#include "backends/cpu/vector_math.h"
#include "core/bfloat16.h"
#include "core/multiversion.h"

namespace onerec::cpu {
namespace {

// Columns of a head that are summed at a time.
constexpr std::int64_t kChunk = 128;

template <class T>
ONEREC_INLINE float dot(const T* a, const T* b, std::int64_t count) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t d = 0; d < count; ++d) sum += to_float(a[d]) * to_float(b[d]);
  return sum;
}

// `value` rounded to T, as Out: T itself or FP32.
template <class T, class Out>
ONEREC_INLINE Out rounded(float value) {
  if constexpr (std::is_same_v<T, Out>) {
    return round_to<T>(value);
  } else {
    return to_float(round_to<T>(value));
  }
}

// out[d] = sum_s weight[s] * value[s][d] / total for `count` <= kChunk columns.
template <class T, class Out>
ONEREC_INLINE void mix(const float* weight, float total, const T* const* value, int steps, std::int64_t count,
                       Out* out) {
  float sum[kChunk];
  for (int s = 0; s < steps; ++s) {
    const T* row = value[s];
    const float w = weight[s];
    if (s == 0) {
#pragma omp simd
      for (std::int64_t d = 0; d < count; ++d) sum[d] = w * to_float(row[d]);
    } else {
#pragma omp simd
      for (std::int64_t d = 0; d < count; ++d) sum[d] += w * to_float(row[d]);
    }
  }
#pragma omp simd
  for (std::int64_t d = 0; d < count; ++d) out[d] = rounded<T, Out>(sum[d] / total);
}

// Columns [begin, begin + count) of row r of the output, of which token[s] are the keys and values.
template <class T, class Out>
ONEREC_INLINE void attend_columns(const SelfAttentionParams& p, const T* const* token, std::int64_t begin,
                                  std::int64_t count, Out* out) {
  const int steps = p.step + 1;
  const std::int64_t group = p.heads / p.kv_heads;
  const std::int64_t end = begin + count;
  for (std::int64_t h = begin / p.head_dim; h * p.head_dim < end; ++h) {
    const std::int64_t first = h * p.head_dim;
    const T* q = token[p.step] + first;
    const std::int64_t key_column = (p.heads + h / group) * p.head_dim;
    const std::int64_t value_column = key_column + p.kv_heads * p.head_dim;
    float weight[kMaxLevels];
    float largest = -INFINITY;
    for (int s = 0; s < steps; ++s) {
      weight[s] = p.scale * dot(q, token[s] + key_column, p.head_dim);
      largest = std::fmax(largest, weight[s]);
    }
    float total = 0.0f;
    for (int s = 0; s < steps; ++s) {
      weight[s] = std::exp(weight[s] - largest);
      total += weight[s];
    }
    const std::int64_t last = std::min(first + p.head_dim, end);
    for (std::int64_t c = std::max(first, begin); c < last; c += kChunk) {
      const T* value[kMaxLevels];
      for (int s = 0; s < steps; ++s) value[s] = token[s] + value_column + (c - first);
      mix(weight, total, value, steps, std::min(kChunk, last - c), out + (c - begin));
    }
  }
}

template <class T>
ONEREC_INLINE void attend(const SelfAttentionParams& p, std::int64_t r) {
  const T* token[kMaxLevels];
  for (int s = 0; s < p.step; ++s) token[s] = p.qkv[s].row<T>(p.ancestry[s][r]);
  token[p.step] = p.qkv[p.step].row<T>(r);
  if (p.quantized.values.data == nullptr) {
    attend_columns(p, token, 0, p.heads * p.head_dim, p.out.row<T>(r));
    return;
  }
  quantize_row(p.quantized, r, [&](std::int64_t begin, std::int64_t count, float* out) {
    attend_columns(p, token, begin, count, out);
  });
}

ONEREC_MULTIVERSION
void attend_f32(const SelfAttentionParams& p, std::int64_t begin, std::int64_t end) {
  for (std::int64_t r = begin; r < end; ++r) attend<float>(p, r);
}

ONEREC_MULTIVERSION
void attend_bf16(const SelfAttentionParams& p, std::int64_t begin, std::int64_t end) {
  for (std::int64_t r = begin; r < end; ++r) attend<BFloat16>(p, r);
}

}  // namespace

void CpuBackend::self_attention(Stream& stream, const SelfAttentionParams& params) {
  submit(stream, [p = params] {
    const std::int64_t work_per_row = p.heads * p.head_dim * 2 * (p.step + 1);
    for_rows(live(p.rows), work_per_row, [&](std::int64_t begin, std::int64_t end) {
      p.qkv[p.step].dtype == DType::kF32 ? attend_f32(p, begin, end) : attend_bf16(p, begin, end);
    });
  });
}

}  // namespace onerec::cpu
