// What a norm is to its kernels.
#pragma once

#include "backends/cuda/alignment.h"
#include "backends/cuda/kernels/rms_norm.cuh"
#include "backends/cuda/row_launch.h"
#include "core/float8.h"
#include "ops/rms_norm.h"

namespace onerec::cuda {

// All groups are whole vectors, of x's elements, at multiples of 16 bytes; codes at multiples of a vector's elements.
inline bool norms_vectors(const RmsNormParams& p) {
  const std::int64_t elements = vector_elements(p.x.dtype);
  return p.width % elements == 0 && rows_aligned(p.x, elements) && at_vector(p.gamma) &&
         countable(p.rows.capacity, p.groups) && (p.y.data == nullptr || rows_aligned(p.y, elements)) &&
         (p.quantized.values.data == nullptr || rows_aligned(p.quantized.values, elements)) &&
         (p.quantized_blocks.values.data == nullptr || rows_aligned(p.quantized_blocks.values, elements));
}

inline kernels::Element element_of(const Matrix& y) {
  if (y.data == nullptr) return kernels::Element::kNone;
  return y.dtype == DType::kF32 ? kernels::Element::kF32 : kernels::Element::kBF16;
}

inline kernels::PendingTarget pending_target(const PendingNorm& pending) {
  return {.squares = reinterpret_cast<unsigned long long*>(pending.squares),
          .next_squares = reinterpret_cast<unsigned long long*>(pending.next_squares)};
}

inline kernels::RmsNormArguments norm_arguments(const RmsNormParams& p, const kernels::RowParts& rows) {
  return {.rows = rows,
          .width = p.width,
          .inverse_width = 1.0f / static_cast<float>(p.width),
          .x = p.x.data,
          .x_stride = p.x.stride,
          .gamma = p.gamma,
          .eps = p.eps,
          .y_type = element_of(p.y),
          .y = p.y.data,
          .y_stride = p.y.stride,
          .quantized = code_rows(p.quantized),
          .code_scale = norm_code_scale(p.gamma_magnitude),
          .pending = pending_target(p.quantized.pending),
          .quantized_blocks = code_rows(p.quantized_blocks)};
}

}  // namespace onerec::cuda
