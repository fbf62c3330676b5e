// prepared_linear: the input's op and the product, in one kernel or in two, against float64 and against each other.
#include "ops/prepared_linear.h"

#include <gtest/gtest.h>

#include <string>

#include "support/norm_codes.h"
#include "support/oracle.h"
#include "support/runner.h"
#include "support/weights.h"

namespace onerec {
namespace {

using test::Random;
using test::Runner;
using test::TestArray;
using test::TestDevice;
using test::TestMatrix;
using test::TestOperand;
using test::TestWeight;

enum class Maker { kNorm, kSwiglu, kQuantize };

struct Format {
  WeightFormat format;
  DType weight;
  DType source;
  DType out;
};

constexpr Format kFp8{WeightFormat::kFp8Channel, DType::kE4M3, DType::kBF16, DType::kBF16};
constexpr Format kBf16{WeightFormat::kDense, DType::kBF16, DType::kBF16, DType::kBF16};
constexpr Format kBf16ToF32{WeightFormat::kDense, DType::kBF16, DType::kBF16, DType::kF32};
constexpr Format kF32{WeightFormat::kDense, DType::kF32, DType::kF32, DType::kF32};
constexpr Format kFormats[] = {kFp8, kBf16, kBf16ToF32, kF32};

struct Case {
  Format format = kFp8;
  Maker maker = Maker::kNorm;
  std::int64_t rows = 1;
  std::int64_t live = -1;  // -1: no count
  std::int64_t inputs = 64;
  std::int64_t outputs = 48;
  bool residual = false;
  std::int64_t padding = 0;
  std::int64_t unread = 0;
};

// An input, the buffers that the op needs, and the params.
class Problem {
 public:
  Problem(Backend& backend, const Case& c)
      : case_(c),
        random_(11),
        weight_(backend, random_, c.format.format, c.format.weight, 1, c.outputs, c.inputs),
        source_(test::random_matrix(random_, c.format.source, c.rows,
                                    c.maker == Maker::kSwiglu ? 2 * c.inputs : c.inputs, 1.0f, c.padding)),
        gamma_(test::random_floats(random_, c.inputs)),
        bias_(test::random_floats(random_, c.outputs)),
        residual_(test::random_matrix(random_, c.format.out, c.rows, c.outputs, 2.0f, c.padding)),
        count_({static_cast<std::int32_t>(c.live)}),
        dense_(c.format.source, c.rows, c.inputs),
        coded_(ScaleKind::kPerRow, c.rows, c.inputs),
        y_(c.format.out, c.rows, c.outputs, c.padding) {}

  bool coded() const { return case_.format.format == WeightFormat::kFp8Channel; }
  Extent rows() const { return {case_.rows, case_.live < 0 ? nullptr : count_.get()}; }
  Operand x() const { return coded() ? coded_.view() : Operand{.values = dense_.view()}; }

  PreparedLinearParams params() const {
    const LinearParams product{.x = x(),
                               .weight = weight_.packed(),
                               .bias = bias_.get(),
                               .residual = case_.residual ? ConstMatrix(residual_.view()) : ConstMatrix{},
                               .y = y_.view(),
                               .unread = case_.unread,
                               .rows = rows()};
    const Matrix values = coded() ? Matrix{} : dense_.view();
    const Operand codes = coded() ? coded_.view() : Operand{};
    switch (case_.maker) {
      case Maker::kNorm:
        return {RmsNormParams{.x = source_.view(),
                              .gamma = gamma_.get(),
                              .width = case_.inputs,
                              .eps = 1e-5f,
                              .gamma_magnitude = test::largest_magnitude(gamma_),
                              .y = values,
                              .quantized = codes,
                              .rows = rows()},
                product};
      case Maker::kSwiglu:
        return {SwigluParams{
                    .gate_up = source_.view(), .width = case_.inputs, .y = values, .quantized = codes, .rows = rows()},
                product};
      case Maker::kQuantize:
        break;
    }
    return {QuantizeParams{.x = source_.view(), .quantized = codes, .rows = rows()}, product};
  }

  TestMatrix& y() { return y_; }
  TestMatrix& dense() { return dense_; }
  TestOperand& codes() { return coded_; }

  // y against float64 on the x that is there.
  void check() const {
    const std::int64_t live = case_.live < 0 ? case_.rows : case_.live;
    for (std::int64_t r = 0; r < live; ++r) {
      for (std::int64_t n = case_.unread; n < case_.outputs; ++n) {
        double sum = 0.0;
        double magnitude = 0.0;
        for (std::int64_t k = 0; k < case_.inputs; ++k) {
          const double value = coded() ? static_cast<double>(coded_.codes.get(r, k)) * coded_.scale(r, k)
                                       : static_cast<double>(dense_.get(r, k));
          sum += value * weight_.value(0, n, k);
          magnitude += std::abs(value * weight_.value(0, n, k));
        }
        double want = sum + bias_[n];
        if (case_.residual) want += residual_.get(r, n);
        const double slack = test::dot_slack(weight_.dtype(), magnitude) +
                             4 * test::rounding_error(DType::kF32, std::abs(want) + std::abs(sum) + 4.0);
        test::expect_close(case_.format.out, y_.get(r, n), want, slack, "y", r, n);
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }

 private:
  Case case_;
  Random random_;
  TestWeight weight_;
  TestMatrix source_;
  TestArray<float> gamma_;
  TestArray<float> bias_;
  TestMatrix residual_;
  TestArray<std::int32_t> count_;
  TestMatrix dense_;
  TestOperand coded_;
  TestMatrix y_;
};

void check(const Case& c) {
  SCOPED_TRACE(concat(c.rows, " (", c.live, " live) x ", c.inputs, " -> ", c.outputs, " maker ",
                      static_cast<int>(c.maker), " ", name_of(c.format.weight), " -> ", name_of(c.format.out)));
  Runner runner;
  Problem problem(runner.backend(), c);
  const std::vector<unsigned char> before = problem.y().snapshot();
  std::vector<test::GuardedBuffer*> outputs{&problem.y(), &problem.dense(), &problem.codes().codes,
                                            &problem.codes().scales};
  runner.run([&](OpContext& context) { prepared_linear(context, problem.params()); }, outputs);
  const std::vector<unsigned char> at_once = problem.y().snapshot();

  problem.y().restore(before);
  runner.run_once([&](OpContext& context) {
    context.fused = false;
    prepared_linear(context, problem.params());
  });
  problem.check();
  if (testing::Test::HasFatalFailure()) return;
  // A GPU may multiply the parts on its tensor cores, which round otherwise.
  if (test::test_device() != TestDevice::kCuda) {
    EXPECT_EQ(at_once, problem.y().snapshot()) << "one kernel and two differ";
  } else {
    problem.y().restore(at_once);
    problem.check();
  }
}

class PreparedLinear : public testing::TestWithParam<Format> {};

TEST_P(PreparedLinear, Norm) {
  for (const std::int64_t inputs : {16, 64, 128, 640, 1792}) {
    check({.format = GetParam(), .inputs = inputs, .outputs = 40});
    check({.format = GetParam(), .inputs = inputs, .outputs = 1500});  // more groups than blocks, in the emulation
    check({.format = GetParam(), .rows = 3, .inputs = inputs, .outputs = 33, .residual = true, .padding = 8});
    if (HasFatalFailure()) return;
  }
}

TEST_P(PreparedLinear, Swiglu) {
  for (const std::int64_t inputs : {16, 128, 640, 2560}) {
    check({.format = GetParam(), .maker = Maker::kSwiglu, .inputs = inputs, .outputs = 40, .residual = true});
    check({.format = GetParam(), .maker = Maker::kSwiglu, .rows = 4, .inputs = inputs, .outputs = 33, .padding = 8});
    if (HasFatalFailure()) return;
  }
}

TEST_P(PreparedLinear, LiveRows) {
  for (const std::int64_t live : {0, 1, 3, 4}) check({.format = GetParam(), .rows = 4, .live = live});
}

TEST_P(PreparedLinear, WhatOneKernelCannotTake) {
  check({.format = GetParam(), .rows = 20});                   // too many rows
  check({.format = GetParam(), .inputs = 19, .outputs = 21});  // no whole vectors
  check({.format = GetParam(), .rows = 2, .padding = 3});
}

// Columns that nobody reads may be left out: what is read is the same.
TEST_P(PreparedLinear, UnreadColumns) {
  for (const std::int64_t rows : {1, 3, 20}) {
    for (const std::int64_t unread : {1, 16, 40, 89}) {
      check({.format = GetParam(), .rows = rows, .outputs = 90, .residual = true, .unread = unread});
      if (HasFatalFailure()) return;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, PreparedLinear, testing::ValuesIn(kFormats));

TEST(PreparedLinearFp8, Quantize) {
  for (const std::int64_t inputs : {16, 640, 1792}) {
    check({.maker = Maker::kQuantize, .inputs = inputs, .outputs = 40, .residual = true});
    check({.maker = Maker::kQuantize, .rows = 2, .inputs = inputs, .outputs = 600});
    if (HasFatalFailure()) return;
  }
}

TEST(PreparedLinearKernel, GpusTakeFewRows) {
  Runner runner;
  const auto fuses = [&](const Case& c) {
    const Problem problem(runner.backend(), c);
    return runner.backend().fuses_prepared_linear(problem.params());
  };
  const bool can = test::test_device() != TestDevice::kCpu;
  for (const Format& format : kFormats) {
    EXPECT_EQ(fuses({.format = format, .inputs = 1792}), can);
    EXPECT_EQ(fuses({.format = format, .maker = Maker::kSwiglu, .rows = 4, .inputs = 2560}), can);
    EXPECT_FALSE(fuses({.format = format, .rows = 32}));
    EXPECT_FALSE(fuses({.format = format, .inputs = 19}));
  }
}

TEST(PreparedLinearContract, RefusesInputsThatDoNotFit) {
  Runner runner;
  Problem problem(runner.backend(), {.rows = 2});
  PreparedLinearParams params = problem.params();
  std::get<RmsNormParams>(params.input).rows.capacity = 1;
  const auto refusal = [&] { return runner.refusal([&](OpContext& context) { prepared_linear(context, params); }); };
  EXPECT_NE(refusal().find("want the same rows"), std::string::npos) << refusal();
  params = problem.params();
  params.product.x.values.stride += 1;
  EXPECT_NE(refusal().find("not written to product.x"), std::string::npos) << refusal();
  params = problem.params();
  std::get<RmsNormParams>(params.input).quantized_blocks = std::get<RmsNormParams>(params.input).quantized;
  EXPECT_NE(refusal().find("a norm of several outputs"), std::string::npos) << refusal();
  params = problem.params();
  std::get<RmsNormParams>(params.input).gamma = nullptr;
  EXPECT_NE(refusal().find("gamma"), std::string::npos) << refusal();
}

}  // namespace
}  // namespace onerec
