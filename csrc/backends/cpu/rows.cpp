#include "backends/cpu/rows.h"

#include "core/bfloat16.h"
#include "core/multiversion.h"

namespace onerec::cpu {
namespace {

ONEREC_MULTIVERSION void add_f32(const float* a, const float* b, std::int64_t count, float* out) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) out[i] = a[i] + b[i];
}

ONEREC_MULTIVERSION void add_bf16(const BFloat16* a, const BFloat16* b, std::int64_t count, BFloat16* out) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) out[i] = to_bfloat16(to_float(a[i]) + to_float(b[i]));
}

}  // namespace

void add_rows(DType dtype, const void* a, const void* b, std::int64_t count, void* out) {
  if (dtype == DType::kF32) {
    add_f32(static_cast<const float*>(a), static_cast<const float*>(b), count, static_cast<float*>(out));
  } else {
    add_bf16(static_cast<const BFloat16*>(a), static_cast<const BFloat16*>(b), count, static_cast<BFloat16*>(out));
  }
}

}  // namespace onerec::cpu
