// linear_swiglu: in one product where the backend has such a kernel, else as its parts.
#include "ops/linear_swiglu.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "ops/backend.h"
#include "ops/quantize.h"
#include "ops/swiglu.h"
#include "support/dense_kernels.h"
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
  const LinearSwigluParams params = problem.linear_params();
  runner.run([&](OpContext& context) { linear_swiglu(context, params); }, problem.outputs());
  problem.check();
  if (sizes.static_scale == 0.0f) return;
  const bool taken = runner.backend().fuses_linear_swiglu(params);
  for (std::int64_t r = 0; r < sizes.counts[0]; ++r) ASSERT_EQ(problem.hidden.scales[r] == sizes.static_scale, taken);
}

TEST(LinearSwiglu, CodesOfAnyShape) {
  check_codes(sizes_of(0, 4, 24, 20));
  check_codes(sizes_of(1, 1, 1, 1));
  check_codes(sizes_of(5, 9, 131, 150));
  check_codes(sizes_of(5, 9, 257, 129, 0, DType::kF32));
}

// A scale that is known beforehand, with room for any row, is what tensor cores take; the parts look for the largest
// value.
TEST(LinearSwiglu, CodesByAStaticScale) {
  const auto with_scale = [](SwigluProblem::Sizes sizes) {
    sizes.static_scale = 4096.0f;
    return sizes;
  };
  check_codes(with_scale(sizes_of(5, 9, 131, 150)));
  check_codes(with_scale(sizes_of(kManyRows, kManyRows, 128, 128)));
  if (test::test_device() == TestDevice::kSimt) return;
  check_codes(with_scale(sizes_of(kManyRows + 44, kManyRows + 44, 272, 160, 16)));
  check_codes(with_scale(sizes_of(3, kManyRows, 512, 96)));
  check_codes(with_scale(sizes_of(0, kManyRows, 128, 128)));
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

// Enough rows for a kernel that makes the codes itself: two bands of its tiles, the second one partial.
constexpr std::int64_t kCodedRows = 4396;
constexpr std::int64_t kCodedInputs = 144;
constexpr std::int64_t kCodedWidth = 256;

TEST(LinearSwiglu, CodesOfManyRows) {
  if (test::test_device() != TestDevice::kCuda) GTEST_SKIP() << "this device does all numbers of rows alike";
  for (const std::int32_t live : {0, 1, 1000, static_cast<std::int32_t>(kCodedRows)}) {
    check_codes(sizes_of(live, kCodedRows, kCodedInputs, kCodedWidth, 16));
  }
  check_codes(sizes_of(4100, 4100, 128, 352));
}

// The workspace is measured without knowing whether the kernel is used, and without addresses.
TEST(LinearSwiglu, MeasuresBothWays) {
  Runner runner;
  SwigluProblem problem(runner.backend(), sizes_of(1, kCodedRows, kCodedInputs, kCodedWidth));
  const LinearSwigluParams params = problem.linear_params();
  EXPECT_GE(runner.measure([&](OpContext& context) { linear_swiglu(context, params); }),
            runner.backend().linear_swiglu_workspace(params));
  LinearSwigluParams elsewhere = params;
  elsewhere.quantized.values.data = static_cast<unsigned char*>(params.quantized.values.data) + 1;
  EXPECT_EQ(runner.backend().linear_swiglu_workspace(elsewhere), runner.backend().linear_swiglu_workspace(params));
}

// Every kernel that makes codes: bitwise those of quantize() of the values that it stores otherwise, on few blocks and
// on many, for rows of zeros, infinities and NaNs too.
TEST(LinearSwiglu, CodesAreThoseOfItsValues) {
  constexpr int kBlockCounts[] = {4, 20, 132};
  const std::vector<test::DenseKernel> kernels = test::dense_swiglu_kernels();
  if (kernels.empty()) GTEST_SKIP() << "this device has no tensor cores";
  struct Case {
    std::int32_t live;
    std::int64_t inputs;
    std::int64_t width;
  };
  for (const Case& c : {Case{static_cast<std::int32_t>(kCodedRows), kCodedInputs, kCodedWidth}, Case{0, 128, 32},
                        Case{1, 128, 96}, Case{1000, 272, 1056}, Case{2050, 128, 3584}}) {
    Runner runner;
    Random random(9);
    const TestWeight weight(runner.backend(), random, WeightFormat::kFp8Channel, DType::kE4M3, 1, 2 * c.width,
                            c.inputs);
    const TestInput x(random, WeightFormat::kFp8Channel, DType::kE4M3, kCodedRows, c.inputs);
    float* const scales = x.view().scales;
    scales[5] = 0.0f;
    scales[700] = std::numeric_limits<float>::quiet_NaN();
    scales[701] = 1e36f;
    scales[2049] = std::numeric_limits<float>::infinity();
    const TestArray<std::int32_t> count({c.live});
    TestMatrix gate_up(DType::kBF16, kCodedRows, 2 * c.width, 8);
    TestMatrix y(DType::kBF16, kCodedRows, c.width);
    TestOperand want(ScaleKind::kPerRow, kCodedRows, c.width, 8);
    LinearSwigluParams params{.x = x.view(),
                              .weight = weight.packed(),
                              .width = c.width,
                              .gate_up = gate_up.view(),
                              .rows = {kCodedRows, count.get()}};
    for (const test::DenseKernel& kernel : kernels) {
      params.y = y.view();
      params.quantized = {};
      runner.run_once([&](OpContext& context) {
        if (!context.measuring) run_kernel(context.stream, params, y.view(), kernel, kBlockCounts[0]);
        quantize(context, {.x = y.view(), .quantized = want.view(), .rows = params.rows});
      });
      params.y = {};
      for (const int blocks : kBlockCounts) {
        SCOPED_TRACE(concat(kernel.name, ": ", c.inputs, " -> ", c.width, " rows ", c.live, " on ", blocks, " blocks"));
        TestOperand codes(ScaleKind::kPerRow, kCodedRows, c.width, 8);
        params.quantized = codes.view();
        runner.run(
            [&](OpContext& context) {
              context.need_workspace(test::codes_workspace(params));
              if (!context.measuring) run_codes_kernel(context.stream, params, kernel, blocks, context.workspace);
            },
            {&gate_up, &codes.codes, &codes.scales});
        ASSERT_TRUE(codes.codes.snapshot() == want.codes.snapshot());
        ASSERT_TRUE(codes.scales.snapshot() == want.scales.snapshot());
      }
    }
  }
}

// Every kernel that makes codes by a static scale: those of the values that it stores otherwise, which are rounded once
// more. What is beyond the scale saturates, and a NaN stays one.
TEST(LinearSwiglu, StaticCodesAreThoseOfItsValues) {
  constexpr int kBlockCounts[] = {4, 20, 132};
  const std::vector<test::DenseKernel> kernels = test::dense_swiglu_kernels();
  if (kernels.empty()) GTEST_SKIP() << "this device has no tensor cores";
  constexpr std::int64_t kRows = 2300;
  constexpr std::int64_t kNan = 700;
  struct Case {
    std::int32_t live;
    std::int64_t inputs;
    std::int64_t width;
    float scale;
  };
  for (const Case& c : {Case{static_cast<std::int32_t>(kRows), 144, 256, 64.0f}, Case{0, 128, 32, 1.0f},
                        Case{1, 128, 96, 16.0f}, Case{1000, 272, 1056, 0.25f}, Case{2050, 128, 3584, 64.0f}}) {
    Runner runner;
    Random random(9);
    const TestWeight weight(runner.backend(), random, WeightFormat::kFp8Channel, DType::kE4M3, 1, 2 * c.width,
                            c.inputs);
    const TestInput x(random, WeightFormat::kFp8Channel, DType::kE4M3, kRows, c.inputs);
    x.view().scales[5] = 0.0f;
    x.view().scales[kNan] = std::numeric_limits<float>::quiet_NaN();
    const TestArray<std::int32_t> count({c.live});
    TestMatrix gate_up(DType::kBF16, kRows, 2 * c.width, 8);
    TestMatrix y(DType::kBF16, kRows, c.width);
    LinearSwigluParams params{.x = x.view(),
                              .weight = weight.packed(),
                              .width = c.width,
                              .gate_up = gate_up.view(),
                              .rows = {kRows, count.get()}};
    for (const test::DenseKernel& kernel : kernels) {
      params.y = y.view();
      params.quantized = {};
      runner.run_once([&](OpContext& context) {
        if (!context.measuring) run_kernel(context.stream, params, y.view(), kernel, kBlockCounts[0]);
      });
      params.y = {};
      for (const int blocks : kBlockCounts) {
        SCOPED_TRACE(concat(kernel.name, ": ", c.inputs, " -> ", c.width, " rows ", c.live, " on ", blocks, " blocks"));
        TestOperand codes(ScaleKind::kPerRow, kRows, c.width, 8);
        params.quantized = codes.view();
        params.quantized.static_scale = c.scale;
        runner.run(
            [&](OpContext& context) {
              if (!context.measuring) run_static_codes_kernel(context.stream, params, kernel, blocks);
            },
            {&gate_up, &codes.codes, &codes.scales});
        const auto code_of = [&](float value) { return from_e4m3(to_e4m3(value / c.scale)); };
        for (std::int64_t r = 0; r < c.live; ++r) {
          ASSERT_EQ(codes.scales[r], c.scale) << "row " << r;
          for (std::int64_t col = 0; col < c.width; ++col) {
            const auto got = static_cast<float>(codes.codes.get(r, col));
            const auto value = static_cast<float>(y.get(r, col));
            if (r == kNan) {
              ASSERT_TRUE(std::isnan(got) && std::isnan(value)) << "row " << r << " column " << col;
              continue;
            }
            const float room = std::fabs(value) * 0x1p-8f;
            ASSERT_GE(got, code_of(value - room)) << "row " << r << " column " << col << " of " << value;
            ASSERT_LE(got, code_of(value + room)) << "row " << r << " column " << col << " of " << value;
          }
        }
        for (std::int64_t r = c.live; r < kRows; ++r) ASSERT_TRUE(std::isnan(codes.scales[r])) << "row " << r;
      }
    }
  }
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
