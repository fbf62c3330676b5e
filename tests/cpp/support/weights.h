// A random weight in every format, packed by a backend, and its values for an oracle.
#pragma once

#include <memory>
#include <string>

#include "ops/backend.h"
#include "support/tensors.h"
#include "support/tolerance.h"

namespace onerec::test {

class TestWeight {
 public:
  TestWeight(Backend& backend, Random& random, WeightFormat format, DType dtype, std::int64_t experts,
             std::int64_t outputs, std::int64_t inputs)
      : format_(format),
        outputs_(outputs),
        inputs_(inputs),
        values_(random_matrix(random, dtype, experts * outputs, inputs, dtype == DType::kE4M3 ? 100.0f : 0.1f)),
        scales_(scale_count(experts)) {
    for (float& scale : scales_) scale = 0.0001f + 0.001f * std::abs(normal(random));
    packed_ = backend.pack_linear(source("test.weight", experts));
  }

  DType dtype() const { return values_.dtype(); }
  const LinearWeight* packed() const { return packed_.get(); }
  LinearWeightSource source(const std::string& name, std::int64_t experts) const {
    return {.name = name,
            .experts = experts,
            .outputs = outputs_,
            .inputs = inputs_,
            .format = format_,
            .dtype = values_.dtype(),
            .values = values_.data(),
            .scales = format_ == WeightFormat::kDense ? nullptr : scales_.get()};
  }

  // The value, its scale included.
  double value(std::int64_t expert, std::int64_t n, std::int64_t k) const {
    return static_cast<double>(values_.get(expert * outputs_ + n, k)) * scale(expert, n, k);
  }

 private:
  std::int64_t scale_count(std::int64_t experts) const {
    if (format_ == WeightFormat::kDense) return 0;
    if (format_ == WeightFormat::kFp8Channel) return experts * outputs_;
    return experts * scale_blocks(outputs_) * scale_blocks(inputs_);
  }

  double scale(std::int64_t expert, std::int64_t n, std::int64_t k) const {
    if (format_ == WeightFormat::kDense) return 1.0;
    if (format_ == WeightFormat::kFp8Channel) return scales_[expert * outputs_ + n];
    const std::int64_t row = expert * scale_blocks(outputs_) + n / kScaleBlock;
    return scales_[row * scale_blocks(inputs_) + k / kScaleBlock];
  }

  WeightFormat format_;
  std::int64_t outputs_;
  std::int64_t inputs_;
  TestMatrix values_;
  TestArray<float> scales_;
  std::unique_ptr<LinearWeight> packed_;
};

// The left-hand side that a weight of this format and dtype takes.
class TestInput {
 public:
  TestInput(Random& random, WeightFormat format, DType dtype, std::int64_t rows, std::int64_t cols,
            std::int64_t padding = 0)
      : dense_(format == WeightFormat::kDense ? random_matrix(random, dtype, rows, cols, 1.0f, padding)
                                              : TestMatrix(DType::kF32, 0, 0)),
        coded_(format == WeightFormat::kFp8Block ? ScaleKind::kPerBlock : ScaleKind::kPerRow,
               format == WeightFormat::kDense ? 0 : rows, cols, padding, padding),
        is_dense_(format == WeightFormat::kDense) {
    if (!is_dense_) coded_.fill_random(random);
  }

  Operand view() const { return is_dense_ ? Operand{.values = dense_.view()} : coded_.view(); }
  double value(std::int64_t r, std::int64_t c) const {
    if (is_dense_) return dense_.get(r, c);
    return static_cast<double>(coded_.codes.get(r, c)) * coded_.scale(r, c);
  }

 private:
  TestMatrix dense_;
  TestOperand coded_;
  bool is_dense_;
};

// A float64 dot product and the FP32 error that a library may make in it.
struct Dot {
  double sum = 0.0;
  double slack = 0.0;
};

inline Dot dot(const TestInput& x, std::int64_t row, const TestWeight& weight, std::int64_t expert, std::int64_t n,
               std::int64_t inputs) {
  Dot result;
  double magnitude = 0.0;
  for (std::int64_t k = 0; k < inputs; ++k) {
    const double product = x.value(row, k) * weight.value(expert, n, k);
    result.sum += product;
    magnitude += std::abs(product);
  }
  result.slack = dot_slack(weight.dtype(), magnitude);
  return result;
}

}  // namespace onerec::test
