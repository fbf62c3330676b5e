// Non-owning views of device or host memory, and the extents that ops work over.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace onerec {

// A row-major matrix: element (r, c) lies at data[r * stride + c]. `stride` is in elements, >= cols.
struct Matrix {
  void* data = nullptr;
  DType dtype = DType::kF32;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t stride = 0;

  template <class T>
  T* row(std::int64_t r) const {
    return static_cast<T*>(data) + r * stride;
  }
  // Columns [begin, begin + count) of every row.
  Matrix columns(std::int64_t begin, std::int64_t count) const {
    return {static_cast<std::byte*>(data) + static_cast<std::size_t>(begin) * size_of(dtype), dtype, rows, count,
            stride};
  }
};

struct ConstMatrix {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t stride = 0;

  ConstMatrix() = default;
  ConstMatrix(const void* data_, DType dtype_, std::int64_t rows_, std::int64_t cols_, std::int64_t stride_)
      : data(data_), dtype(dtype_), rows(rows_), cols(cols_), stride(stride_) {}
  ConstMatrix(const Matrix& m)
      : data(m.data), dtype(m.dtype), rows(m.rows), cols(m.cols), stride(m.stride) {}  // NOLINT

  template <class T>
  const T* row(std::int64_t r) const {
    return static_cast<const T*>(data) + r * stride;
  }
  ConstMatrix columns(std::int64_t begin, std::int64_t count) const {
    return {static_cast<const std::byte*>(data) + static_cast<std::size_t>(begin) * size_of(dtype), dtype, rows, count,
            stride};
  }
};

// How many rows an op works on: `capacity` is what a plan was made for and what may be branched on when the op is
// issued; `count`, in device memory, says how many of them are live when it runs (null: all). 0 <= *count <= capacity.
struct Extent {
  std::int64_t capacity = 0;
  const std::int32_t* count = nullptr;
};

}  // namespace onerec
