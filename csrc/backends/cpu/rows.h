// Rows of FP32 or BF16 whose type is known only when an op runs.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/tensor_view.h"

namespace onerec::cpu {

inline std::size_t row_bytes(const ConstMatrix& m) { return static_cast<std::size_t>(m.cols) * size_of(m.dtype); }

inline std::byte* row_at(const Matrix& m, std::int64_t r) {
  return static_cast<std::byte*>(m.data) + static_cast<std::size_t>(r * m.stride) * size_of(m.dtype);
}

inline const std::byte* row_at(const ConstMatrix& m, std::int64_t r) {
  return static_cast<const std::byte*>(m.data) + static_cast<std::size_t>(r * m.stride) * size_of(m.dtype);
}

// out[i] = round(a[i] + b[i]), all of `dtype`, FP32 or BF16.
void add_rows(DType dtype, const void* a, const void* b, std::int64_t count, void* out);

}  // namespace onerec::cpu
