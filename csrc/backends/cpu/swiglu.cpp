#include "ops/swiglu.h"

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/parallel.h"
#include "backends/cpu/quantize_row.h"
#include "core/multiversion.h"

namespace onerec::cpu {
namespace {

// An exponential costs about as much as this many loads and stores.
constexpr std::int64_t kCostPerElement = 4;

template <class T, class Y>
ONEREC_INLINE void gate(const T* gates, const T* ups, Y* y, std::int64_t count) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) y[i] = round_to<Y>(silu_of(to_float(gates[i])) * to_float(ups[i]));
}

template <class T>
ONEREC_INLINE void swiglu_rows(const SwigluParams& p, std::int64_t begin, std::int64_t end) {
  for (std::int64_t r = begin; r < end; ++r) {
    const T* gates = p.gate_up.row<T>(r);
    const T* ups = gates + p.width;
    if (p.y.data != nullptr) {
      gate(gates, ups, p.y.row<T>(r), p.width);
    } else {
      quantize_row(p.quantized, r, [&](std::int64_t column, std::int64_t count, float* out) {
        gate(gates + column, ups + column, out, count);
      });
    }
  }
}

ONEREC_MULTIVERSION
void swiglu_f32(const SwigluParams& p, std::int64_t begin, std::int64_t end) { swiglu_rows<float>(p, begin, end); }

ONEREC_MULTIVERSION
void swiglu_bf16(const SwigluParams& p, std::int64_t begin, std::int64_t end) { swiglu_rows<BFloat16>(p, begin, end); }

}  // namespace

void CpuBackend::swiglu(Stream& stream, const SwigluParams& params) {
  submit(stream, [params] {
    for_rows(live(params.rows), params.width * kCostPerElement, [&](std::int64_t begin, std::int64_t end) {
      params.gate_up.dtype == DType::kF32 ? swiglu_f32(params, begin, end) : swiglu_bf16(params, begin, end);
    });
  });
}

}  // namespace onerec::cpu
