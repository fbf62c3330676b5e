// linear_swiglu: in one product where the backend has such a kernel, else as its parts.
#include "ops/linear_swiglu.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "ops/backend.h"
#include "ops/swiglu.h"
#include "support/grouped.h"
#include "support/runner.h"

namespace onerec {
namespace {

using test::Random;
using test::Runner;
using test::SwigluProblem;
using test::TestArray;
using test::TestDevice;
using test::TestInput;
using test::TestMatrix;
using test::TestOperand;
using test::TestWeight;

constexpr std::int32_t kManyRows = 256;  // more than any backend asks for before it fuses

SwigluProblem::Sizes sizes_of(std::int32_t rows, std::int64_t capacity, std::int64_t inputs, std::int64_t width,
                              std::int64_t padding = 0, DType gate_up = DType::kBF16) {
  return {.counts = {rows},
          .capacity = capacity,
          .inputs = inputs,
          .width = width,
          .padding = padding,
          .gate_up = gate_up,
          .format = WeightFormat::kFp8Channel};
}

void check_codes(const SwigluProblem::Sizes& sizes) {
  SCOPED_TRACE(concat(sizes.inputs, " -> ", sizes.width, " rows ", sizes.counts[0], " of ", sizes.capacity));
  Runner runner;
  SwigluProblem problem(runner.backend(), sizes);
  runner.run([&](OpContext& context) { linear_swiglu(context, problem.linear_params()); }, problem.outputs());
  problem.check();
}

TEST(LinearSwiglu, CodesOfAnyShape) {
  check_codes(sizes_of(0, 4, 24, 20));
  check_codes(sizes_of(1, 1, 1, 1));
  check_codes(sizes_of(5, 9, 131, 150));
  check_codes(sizes_of(5, 9, 257, 129, 0, DType::kF32));
}

// What tensor cores take: whole and partial tiles of rows, of columns, and of K.
TEST(LinearSwiglu, CodesOfAlignedShapes) {
  check_codes(sizes_of(kManyRows, kManyRows, 128, 128));
  if (test::test_device() == TestDevice::kSimt) return;  // it has one kernel, and is slow
  check_codes(sizes_of(kManyRows + 44, kManyRows + 44, 272, 160, 16));
  check_codes(sizes_of(3, kManyRows, 512, 96));
  check_codes(sizes_of(130, 2 * kManyRows, 144, 416));
  check_codes(sizes_of(0, kManyRows, 128, 128));
}

// y of one product and of the two parts; bitwise where the backend issues the parts.
void check_values(WeightFormat format, DType dtype, std::int64_t rows, std::int64_t inputs, std::int64_t width) {
  SCOPED_TRACE(concat(inputs, " -> ", width, " rows ", rows));
  Runner runner;
  Random random(5);
  const DType values = format == WeightFormat::kDense ? dtype : DType::kE4M3;
  const TestWeight weight(runner.backend(), random, format, values, 1, 2 * width, inputs);
  const TestInput x(random, format, values, rows, inputs);
  TestMatrix gate_up(dtype, rows, 2 * width);
  TestMatrix y(dtype, rows, width);
  TestMatrix gate_up_of_parts(dtype, rows, 2 * width);
  TestMatrix y_of_parts(dtype, rows, width);
  const LinearSwigluParams params{.x = x.view(),
                                  .weight = weight.packed(),
                                  .width = width,
                                  .gate_up = gate_up.view(),
                                  .y = y.view(),
                                  .rows = {rows}};
  const bool fused = runner.backend().fuses_linear_swiglu(params);
  runner.run([&](OpContext& context) { linear_swiglu(context, params); }, {&gate_up, &y});
  runner.run(
      [&](OpContext& context) {
        linear(context, {.x = x.view(), .weight = weight.packed(), .y = gate_up_of_parts.view(), .rows = {rows}});
        swiglu(context, {.gate_up = gate_up_of_parts.view(), .width = width, .y = y_of_parts.view(), .rows = {rows}});
      },
      {&gate_up_of_parts, &y_of_parts});
  double largest = 0.0;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < width; ++c) largest = std::max<double>(largest, std::abs(y_of_parts.get(r, c)));
  }
  ASSERT_GT(largest, 0.0);
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < width; ++c) {
      // Gates and ups may be rounded to the other side, and with them the product.
      ASSERT_NEAR(y.get(r, c), y_of_parts.get(r, c), fused ? 0.02 * largest : 0.0) << "row " << r << " column " << c;
    }
  }
}

TEST(LinearSwiglu, Values) {
  check_values(WeightFormat::kDense, DType::kF32, 3, 17, 9);
  check_values(WeightFormat::kDense, DType::kBF16, 5, 64, 48);
  check_values(WeightFormat::kFp8Channel, DType::kBF16, kManyRows, 128, 128);
}

TEST(LinearSwiglu, TensorCoresDoItAtOnce) {
  Runner runner;
  const auto fuses = [&](const SwigluProblem::Sizes& sizes) {
    const SwigluProblem problem(runner.backend(), sizes);
    return runner.backend().fuses_linear_swiglu(problem.linear_params());
  };
  const bool can = test::test_device() == TestDevice::kCuda;
  EXPECT_EQ(fuses(sizes_of(1, kManyRows, 128, 128)), can);
  EXPECT_EQ(fuses(sizes_of(1, 512, 1792, 7168)), can);
  EXPECT_FALSE(fuses(sizes_of(1, 1, 128, 128)));
  EXPECT_FALSE(fuses(sizes_of(1, kManyRows, 128, 130)));
  EXPECT_FALSE(fuses(sizes_of(1, kManyRows, 128, 128, 0, DType::kF32)));
}

// Whether or not the backend has a kernel for it, a tap sees what is multiplied, once.
TEST(LinearSwiglu, ShowsItsInput) {
  class Tap final : public OperandTap {
   public:
    void observe(std::string_view weight, const Operand& operand, std::int64_t rows) override {
      seen.push_back(concat(weight, " ", rows, " x ", operand.values.cols));
    }
    std::vector<std::string> seen;
  };
  Runner runner;
  SwigluProblem problem(runner.backend(), sizes_of(kManyRows, kManyRows, 128, 128));
  Tap tap;
  runner.run_once([&](OpContext& context) {
    context.tap = &tap;
    linear_swiglu(context, problem.linear_params());
  });
  EXPECT_EQ(tap.seen, std::vector<std::string>{concat("test.weight ", kManyRows, " x 128")});
}

TEST(LinearSwiglu, RefusesWhatItCannotDo) {
  Runner runner(1);
  Random random(1);
  const TestWeight weight(runner.backend(), random, WeightFormat::kFp8Channel, DType::kE4M3, 1, 32, 64);
  const TestInput x(random, WeightFormat::kFp8Channel, DType::kE4M3, 4, 64);
  TestMatrix gate_up(DType::kBF16, 4, 32);
  TestMatrix y(DType::kBF16, 4, 16);
  TestOperand hidden(ScaleKind::kPerRow, 4, 16);
  const LinearSwigluParams good{.x = x.view(),
                                .weight = weight.packed(),
                                .width = 16,
                                .gate_up = gate_up.view(),
                                .quantized = hidden.view(),
                                .rows = {4}};
  const auto refused = [&](const LinearSwigluParams& params) {
    try {
      runner.run_once([&](OpContext& context) { linear_swiglu(context, params); });
    } catch (const ArgumentError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_EQ(refused(good), "");
  LinearSwigluParams bad = good;
  bad.width = 8;
  EXPECT_NE(refused(bad).find("twice the width"), std::string::npos);
  bad = good;
  bad.y = y.view();
  EXPECT_NE(refused(bad).find("both y and quantized"), std::string::npos);
  bad = good;
  bad.quantized = {};
  EXPECT_NE(refused(bad).find("neither y nor quantized"), std::string::npos);
  bad = good;
  bad.weight = nullptr;
  EXPECT_NE(refused(bad).find("weight"), std::string::npos);
  bad = good;
  bad.gate_up.cols = 16;
  EXPECT_NE(refused(bad).find("gate_up"), std::string::npos);
}

}  // namespace
}  // namespace onerec
