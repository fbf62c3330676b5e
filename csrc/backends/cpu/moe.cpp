#include "ops/moe.h"

#include <algorithm>
#include <cstring>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/parallel.h"
#include "backends/cpu/rows.h"
#include "backends/cpu/vector_math.h"
#include "core/bfloat16.h"
#include "core/multiversion.h"

namespace onerec::cpu {
namespace {

// Columns that are summed at a time.
constexpr std::int64_t kChunk = 256;

template <class T>
ONEREC_INLINE void combine(const MoeCombineParams& p, std::int64_t r) {
  T* h = p.h.row<T>(r);
  float sum[kChunk];
  for (std::int64_t first = 0; first < p.h.cols; first += kChunk) {
    const std::int64_t count = std::min(kChunk, p.h.cols - first);
    std::fill_n(sum, count, 0.0f);
    for (std::int64_t j = 0; j < p.top_k; ++j) {
      const T* expert = p.expert_out.row<T>(p.slots[r * p.top_k + j]) + first;
      const float weight = p.weights[r * p.top_k + j];
#pragma omp simd
      for (std::int64_t i = 0; i < count; ++i) sum[i] += weight * to_float(expert[i]);
    }
    if (p.shared.data != nullptr) {
      const T* shared = p.shared.row<T>(r) + first;
#pragma omp simd
      for (std::int64_t i = 0; i < count; ++i) sum[i] += to_float(shared[i]);
    }
#pragma omp simd
    for (std::int64_t i = 0; i < count; ++i) h[first + i] = round_to<T>(to_float(h[first + i]) + sum[i]);
  }
}

ONEREC_MULTIVERSION
void combine_f32(const MoeCombineParams& p, std::int64_t begin, std::int64_t end) {
  for (std::int64_t r = begin; r < end; ++r) combine<float>(p, r);
}

ONEREC_MULTIVERSION
void combine_bf16(const MoeCombineParams& p, std::int64_t begin, std::int64_t end) {
  for (std::int64_t r = begin; r < end; ++r) combine<BFloat16>(p, r);
}

// A negative source is padding.
void copy_scales(const Operand& from, std::int64_t source, const Operand& to, std::int64_t r) {
  const std::int64_t blocks = from.scale_kind == ScaleKind::kPerRow ? 1 : scale_blocks(from.values.cols);
  for (std::int64_t b = 0; b < blocks; ++b) {
    to.scales[b * to.scale_stride + r] = source < 0 ? kE4M3MinScale : from.scales[b * from.scale_stride + source];
  }
}

}  // namespace

void CpuBackend::gather_rows(Stream& stream, const GatherRowsParams& params) {
  submit(stream, [p = params] {
    const std::size_t bytes = row_bytes(p.x.values);
    for_rows(live(p.sorted_rows), p.x.values.cols, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        if (p.sources[r] < 0) {
          std::memset(row_at(p.sorted.values, r), 0, bytes);
        } else {
          std::memcpy(row_at(p.sorted.values, r), row_at(p.x.values, p.sources[r]), bytes);
        }
        if (p.x.quantized()) copy_scales(p.x, p.sources[r], p.sorted, r);
      }
    });
  });
}

void CpuBackend::moe_combine(Stream& stream, const MoeCombineParams& params) {
  submit(stream, [p = params] {
    for_rows(live(p.rows), p.h.cols * (p.top_k + 2), [&](std::int64_t begin, std::int64_t end) {
      p.h.dtype == DType::kF32 ? combine_f32(p, begin, end) : combine_bf16(p, begin, end);
    });
  });
}

}  // namespace onerec::cpu
