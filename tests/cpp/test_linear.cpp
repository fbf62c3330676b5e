// linear: against float64, in every format, with every epilogue, for live counts below the capacity.
#include "ops/linear.h"

#include <gtest/gtest.h>

#include <optional>
#include <string>

#include "support/openblas.h"
#include "support/oracle.h"
#include "support/runner.h"
#include "support/weights.h"

namespace onerec {
namespace {

using test::Dot;
using test::Random;
using test::Runner;
using test::TestArray;
using test::TestInput;
using test::TestMatrix;
using test::TestWeight;

enum class Residual { kNone, kInPlace, kApart };

struct Case {
  WeightFormat format = WeightFormat::kDense;
  DType dtype = DType::kF32;  // of the weight
  DType out = DType::kF32;
  std::int64_t rows = 1;
  std::int64_t live = -1;  // -1: no count
  std::int64_t inputs = 1;
  std::int64_t outputs = 1;
  bool bias = false;
  Activation activation = Activation::kNone;
  Residual residual = Residual::kNone;
  std::int64_t padding = 0;
  int threads = 2;
};

void check(const Case& c) {
  SCOPED_TRACE(concat(c.rows, " (", c.live, " live) x ", c.inputs, " -> ", c.outputs, " format ",
                      static_cast<int>(c.format), " ", name_of(c.dtype), " -> ", name_of(c.out), " bias ", c.bias,
                      " leaky ", c.activation == Activation::kLeakyRelu, " residual ", static_cast<int>(c.residual)));
  Random random(7);
  Runner runner(c.threads);
  const TestWeight weight(runner.backend(), random, c.format, c.dtype, 1, c.outputs, c.inputs);
  const TestInput x(random, c.format, c.dtype, c.rows, c.inputs, c.padding);
  const TestArray<float> bias = test::random_floats(random, c.outputs);
  const TestMatrix residual = test::random_matrix(random, c.out, c.rows, c.outputs, 2.0f, c.padding);
  TestMatrix y(c.out, c.rows, c.outputs, c.padding);
  if (c.residual == Residual::kInPlace) y.restore(residual.snapshot());
  const std::vector<unsigned char> before = y.snapshot();
  const TestArray<std::int32_t> count({static_cast<std::int32_t>(c.live)});

  const LinearParams params{.x = x.view(),
                            .weight = weight.packed(),
                            .bias = c.bias ? bias.get() : nullptr,
                            .residual = c.residual == Residual::kNone      ? ConstMatrix{}
                                        : c.residual == Residual::kInPlace ? ConstMatrix(y.view())
                                                                           : ConstMatrix(residual.view()),
                            .y = y.view(),
                            .activation = c.activation,
                            .negative_slope = 0.125f,
                            .rows = {c.rows, c.live < 0 ? nullptr : count.get()}};
  runner.run([&](OpContext& context) { linear(context, params); }, {&y});

  TestMatrix untouched(c.out, c.rows, c.outputs, c.padding);
  untouched.restore(before);
  for (std::int64_t r = 0; r < c.rows; ++r) {
    if (c.live >= 0 && r >= c.live) {
      ASSERT_EQ(y.row_bytes(r), untouched.row_bytes(r)) << "row " << r << " is not live";
      continue;
    }
    for (std::int64_t n = 0; n < c.outputs; ++n) {
      Dot sum = test::dot(x, r, weight, 0, n, c.inputs);
      double want = sum.sum + (c.bias ? bias[n] : 0.0f);
      if (c.activation == Activation::kLeakyRelu && want < 0.0) want *= 0.125;
      if (c.residual != Residual::kNone) want += residual.get(r, n);
      // Bias and residual are added in FP32.
      sum.slack += 4 * test::rounding_error(DType::kF32, std::abs(want) + std::abs(sum.sum) + 4.0);
      test::expect_close(c.out, y.get(r, n), want, sum.slack, "y", r, n);
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

struct Format {
  WeightFormat format;
  DType dtype;
  DType out;
};

constexpr Format kFormats[] = {
    {WeightFormat::kDense, DType::kF32, DType::kF32},        {WeightFormat::kDense, DType::kF32, DType::kBF16},
    {WeightFormat::kDense, DType::kBF16, DType::kBF16},      {WeightFormat::kDense, DType::kBF16, DType::kF32},
    {WeightFormat::kFp8Channel, DType::kE4M3, DType::kBF16}, {WeightFormat::kFp8Channel, DType::kE4M3, DType::kF32}};

Case with(const Format& format, Case c) {
  c.format = format.format;
  c.dtype = format.dtype;
  c.out = format.out;
  return c;
}

class Linear : public testing::TestWithParam<Format> {};

TEST_P(Linear, Shapes) {
  for (const std::int64_t rows : {std::int64_t{0}, std::int64_t{1}, std::int64_t{2}, test::at_most_on_simt(31, 9),
                                  test::at_most_on_simt(67, 17)}) {
    for (const auto& [inputs, outputs] :
         {std::pair<std::int64_t, std::int64_t>{1, 1}, {13, 37}, {64, 256}, {131, 521}, {256, 16}}) {
      check(with(GetParam(), {.rows = rows, .inputs = inputs, .outputs = outputs}));
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(Linear, RealShapes) {
  check(with(GetParam(), {.rows = test::at_most_on_simt(130, 9), .inputs = 256, .outputs = 768, .bias = true}));
  check(with(GetParam(),
             {.rows = test::at_most_on_simt(65, 9), .inputs = 640, .outputs = 640, .residual = Residual::kInPlace}));
}

TEST_P(Linear, Epilogues) {
  for (const bool bias : {false, true}) {
    for (const Activation activation : {Activation::kNone, Activation::kLeakyRelu}) {
      for (const Residual residual : {Residual::kNone, Residual::kInPlace, Residual::kApart}) {
        check(with(GetParam(), {.rows = test::at_most_on_simt(35, 9),
                                .inputs = 48,
                                .outputs = 300,
                                .bias = bias,
                                .activation = activation,
                                .residual = residual,
                                .padding = 3}));
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(Linear, RowsBehindTheLiveOnesAreLeftAlone) {
  const std::int64_t rows = test::at_most_on_simt(300, 40);
  for (const std::int64_t live : {0, 1, 15, 16, 33, 130, 300}) {
    if (live > rows) break;
    for (const int threads : {1, 2}) {
      check(with(GetParam(), {.rows = rows,
                              .live = live,
                              .inputs = 40,
                              .outputs = 72,
                              .bias = true,
                              .residual = Residual::kInPlace,
                              .threads = threads}));
      if (HasFatalFailure()) return;
    }
  }
}

// Row r of a batch of any size has the bits of row r alone, and the thread count does not matter.
TEST_P(Linear, RowsDoNotDependOnTheBatch) {
  if (!test::rows_are_independent() || !test::library_keeps_rows()) {
    GTEST_SKIP() << "this device or library does not promise it";
  }
  const Format format = GetParam();
  for (const auto& [inputs, outputs] :
       {std::pair<std::int64_t, std::int64_t>{256, 256}, {640, 328}, {1280, 64}, {13, 37}}) {
    if (inputs > 256 && test::test_device() == test::TestDevice::kSimt) continue;  // slow
    SCOPED_TRACE(concat(inputs, " -> ", outputs));
    const std::int64_t rows = test::at_most_on_simt(330, 40);
    std::optional<std::vector<unsigned char>> first;
    for (const int threads : {1, 3}) {
      Runner runner(threads);
      Random same(11);
      const TestWeight weight(runner.backend(), same, format.format, format.dtype, 1, outputs, inputs);
      const TestInput x(same, format.format, format.dtype, rows, inputs);
      const TestMatrix h = test::random_matrix(same, format.out, rows, outputs);
      for (const std::int64_t capacity : {rows, std::min(rows, std::int64_t{64}), std::int64_t{1}}) {
        for (const std::int32_t live : {1, 2, 3, 7, 16, 33, 64, 100, 255, 256, 329}) {
          if (live > capacity || live > rows) continue;
          TestMatrix y(format.out, rows, outputs);
          y.restore(h.snapshot());
          const TestArray<std::int32_t> count({live});
          runner.run_once([&](OpContext& context) {
            linear(context, {.x = x.view(),
                             .weight = weight.packed(),
                             .residual = y.view(),
                             .y = y.view(),
                             .rows = {capacity, count.get()}});
          });
          if (!first) {
            TestMatrix whole(format.out, rows, outputs);
            whole.restore(h.snapshot());
            runner.run_once([&](OpContext& context) {
              linear(context, {.x = x.view(),
                               .weight = weight.packed(),
                               .residual = whole.view(),
                               .y = whole.view(),
                               .rows = {rows}});
            });
            first = whole.snapshot();
          }
          const std::vector<unsigned char> got = y.snapshot();
          const auto bytes =
              static_cast<std::ptrdiff_t>(live * outputs) * static_cast<std::ptrdiff_t>(size_of(format.out));
          ASSERT_TRUE(std::equal(got.begin(), got.begin() + bytes, first->begin()))
              << live << " rows, capacity " << capacity << ", " << threads << " threads";
        }
      }
    }
  }
}

std::string name_of_format(const testing::TestParamInfo<Format>& info) {
  return concat(info.param.format == WeightFormat::kDense ? "dense_" : "channel_", name_of(info.param.dtype), "_to_",
                name_of(info.param.out));
}

INSTANTIATE_TEST_SUITE_P(Formats, Linear, testing::ValuesIn(kFormats), name_of_format);

// One rounding: the FP8 result is the rounded FP32 one, scales in the documented order.
TEST(LinearNumerics, Fp8ScalesTheSumByColumnThenByRow) {
  Runner runner;
  const std::uint8_t code = to_e4m3(1.0f);
  const float weight_scale = 0.1f;
  const auto weight = runner.backend().pack_linear({.name = "w",
                                                    .outputs = 1,
                                                    .inputs = 1,
                                                    .format = WeightFormat::kFp8Channel,
                                                    .dtype = DType::kE4M3,
                                                    .values = &code,
                                                    .scales = &weight_scale});
  TestArray<std::uint8_t> x({to_e4m3(3.0f)});
  TestArray<float> scale({0.7f});
  TestMatrix y(DType::kF32, 1, 1);
  runner.run_once([&](OpContext& context) {
    linear(context, {.x = {.values = {x.get(), DType::kE4M3, 1, 1, 1},
                           .scale_kind = ScaleKind::kPerRow,
                           .scales = scale.get(),
                           .scale_stride = 1},
                     .weight = weight.get(),
                     .y = y.view(),
                     .rows = {1}});
  });
  EXPECT_EQ(y.get(0, 0), 0.7f * (0.1f * 3.0f));
}

}  // namespace
}  // namespace onerec
