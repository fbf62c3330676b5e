#include "ops/self_attention.h"

#include <algorithm>
#include <cmath>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/parallel.h"
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

// out[d] = sum_s weight[s] * value[s][d] / total for `count` <= kChunk columns.
template <class T>
ONEREC_INLINE void mix(const float* weight, float total, const T* const* value, int steps, std::int64_t count, T* out) {
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
  for (std::int64_t d = 0; d < count; ++d) out[d] = round_to<T>(sum[d] / total);
}

template <class T>
ONEREC_INLINE void attend(const SelfAttentionParams& p, std::int64_t r) {
  const int steps = p.step + 1;
  const std::int64_t group = p.heads / p.kv_heads;
  const T* token[kMaxLevels];
  for (int s = 0; s < p.step; ++s) token[s] = p.qkv[s].row<T>(p.ancestry[s][r]);
  token[p.step] = p.qkv[p.step].row<T>(r);
  T* out = p.out.row<T>(r);

  for (std::int64_t h = 0; h < p.heads; ++h) {
    const T* q = token[p.step] + h * p.head_dim;
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
    for (std::int64_t d = 0; d < p.head_dim; d += kChunk) {
      const T* value[kMaxLevels];
      for (int s = 0; s < steps; ++s) value[s] = token[s] + value_column + d;
      mix(weight, total, value, steps, std::min(kChunk, p.head_dim - d), out + h * p.head_dim + d);
    }
  }
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
      p.out.dtype == DType::kF32 ? attend_f32(p, begin, end) : attend_bf16(p, begin, end);
    });
  });
}

}  // namespace onerec::cpu
