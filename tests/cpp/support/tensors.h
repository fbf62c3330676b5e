// Guarded arrays and matrices, filled from a seed.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <random>
#include <vector>

#include "core/bfloat16.h"
#include "core/float8.h"
#include "core/tensor_view.h"
#include "ops/operand.h"
#include "support/guarded_buffer.h"

namespace onerec::test {

using Random = std::mt19937_64;

inline float normal(Random& random, float deviation = 1.0f) {
  return std::normal_distribution<float>(0.0f, deviation)(random);
}

inline std::int64_t uniform(Random& random, std::int64_t low, std::int64_t high) {  // both ends included
  return std::uniform_int_distribution<std::int64_t>(low, high)(random);
}

// [count] of T, poisoned or given.
template <class T>
class TestArray : public GuardedBuffer {
 public:
  explicit TestArray(std::int64_t count) : GuardedBuffer(static_cast<std::size_t>(count) * sizeof(T)), count_(count) {}
  TestArray(std::initializer_list<T> values) : TestArray(std::vector<T>(values)) {}
  explicit TestArray(const std::vector<T>& values) : TestArray(static_cast<std::int64_t>(values.size())) {
    std::copy(values.begin(), values.end(), begin());
  }

  T* get() const { return reinterpret_cast<T*>(data()); }
  T* begin() const { return get(); }
  T* end() const { return get() + count_; }
  std::int64_t size() const { return count_; }
  T& operator[](std::int64_t i) const { return get()[i]; }

 private:
  std::int64_t count_;
};

inline TestArray<float> random_floats(Random& random, std::int64_t count, float deviation = 1.0f) {
  TestArray<float> array(count);
  for (float& value : array) value = normal(random, deviation);
  return array;
}

// [rows, cols] of FP32, BF16, E4M3 or I32 with `padding` poisoned elements behind every row.
class TestMatrix : public GuardedBuffer {
 public:
  TestMatrix(DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t padding = 0)
      : GuardedBuffer(static_cast<std::size_t>(rows * (cols + padding)) * size_of(dtype)),
        dtype_(dtype),
        rows_(rows),
        cols_(cols),
        stride_(cols + padding) {}

  DType dtype() const { return dtype_; }
  std::int64_t rows() const { return rows_; }
  std::int64_t cols() const { return cols_; }
  std::int64_t stride() const { return stride_; }
  Matrix view() const { return {data(), dtype_, rows_, cols_, stride_}; }

  float get(std::int64_t r, std::int64_t c) const {
    const std::int64_t i = r * stride_ + c;
    switch (dtype_) {
      case DType::kF32:
        return reinterpret_cast<const float*>(data())[i];
      case DType::kBF16:
        return to_float(reinterpret_cast<const BFloat16*>(data())[i]);
      case DType::kE4M3:
        return from_e4m3(data()[i]);
      default:
        return static_cast<float>(reinterpret_cast<const std::int32_t*>(data())[i]);
    }
  }

  // Rounds to the dtype.
  void set(std::int64_t r, std::int64_t c, float value) {
    const std::int64_t i = r * stride_ + c;
    switch (dtype_) {
      case DType::kF32:
        reinterpret_cast<float*>(data())[i] = value;
        break;
      case DType::kBF16:
        reinterpret_cast<BFloat16*>(data())[i] = to_bfloat16(value);
        break;
      case DType::kE4M3:
        data()[i] = to_e4m3(value);
        break;
      default:
        reinterpret_cast<std::int32_t*>(data())[i] = static_cast<std::int32_t>(value);
    }
  }

  void fill_normal(Random& random, float deviation = 1.0f) {
    for (std::int64_t r = 0; r < rows_; ++r) {
      for (std::int64_t c = 0; c < cols_; ++c) set(r, c, normal(random, deviation));
    }
  }

  // The bytes of row r's elements, padding left out.
  std::vector<unsigned char> row_bytes(std::int64_t r) const {
    const unsigned char* begin = data() + static_cast<std::size_t>(r * stride_) * size_of(dtype_);
    return {begin, begin + static_cast<std::size_t>(cols_) * size_of(dtype_)};
  }

 private:
  DType dtype_;
  std::int64_t rows_;
  std::int64_t cols_;
  std::int64_t stride_;
};

inline TestMatrix random_matrix(Random& random, DType dtype, std::int64_t rows, std::int64_t cols,
                                float deviation = 1.0f, std::int64_t padding = 0) {
  TestMatrix matrix(dtype, rows, cols, padding);
  matrix.fill_normal(random, deviation);
  return matrix;
}

// Codes [rows, cols] and their scales, `scale_padding` floats apart beyond the rows.
struct TestOperand {
  TestMatrix codes;
  TestArray<float> scales;
  ScaleKind kind;
  std::int64_t scale_stride;

  TestOperand(ScaleKind kind_, std::int64_t rows, std::int64_t cols, std::int64_t padding = 0,
              std::int64_t scale_padding = 0)
      : codes(DType::kE4M3, rows, cols, padding),
        scales((rows + scale_padding) * (kind_ == ScaleKind::kPerRow ? 1 : scale_blocks(cols))),
        kind(kind_),
        scale_stride(rows + scale_padding) {}

  Operand view() const { return {codes.view(), kind, scales.get(), scale_stride}; }

  float scale(std::int64_t r, std::int64_t c) const {
    return scales[(kind == ScaleKind::kPerRow ? 0 : c / kScaleBlock) * scale_stride + r];
  }

  // Any codes but NaN, any positive scales.
  void fill_random(Random& random) {
    for (std::int64_t r = 0; r < codes.rows(); ++r) {
      for (std::int64_t c = 0; c < codes.cols(); ++c) codes.set(r, c, normal(random, 100.0f));
    }
    for (float& value : scales) value = 0.001f + 0.01f * std::abs(normal(random));
  }
};

}  // namespace onerec::test
