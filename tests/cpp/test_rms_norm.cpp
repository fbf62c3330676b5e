// rms_norm: rows and groups, plain and quantised output, in place, and its refusals.
#include "ops/rms_norm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "support/oracle.h"
#include "support/runner.h"
#include "support/tensors.h"

namespace onerec {
namespace {

using test::Random;
using test::Runner;
using test::TestArray;
using test::TestMatrix;
using test::TestOperand;

struct Case {
  DType in = DType::kF32;
  DType out = DType::kF32;
  std::int64_t rows = 1;
  std::int64_t live = -1;
  std::int64_t width = 1;
  std::int64_t groups = 1;
  bool in_place = false;
  std::int64_t padding = 0;
};

double exact_rstd(const TestMatrix& x, std::int64_t r, std::int64_t first, std::int64_t width, float eps) {
  double sum = 0.0;
  for (std::int64_t i = first; i < first + width; ++i) sum += static_cast<double>(x.get(r, i)) * x.get(r, i);
  return 1.0 / std::sqrt(sum / static_cast<double>(width) + eps);
}

void check(const Case& c) {
  SCOPED_TRACE(concat(c.rows, " (", c.live, " live) rows, ", c.groups, " x ", c.width, " ", name_of(c.in), " -> ",
                      name_of(c.out), c.in_place ? " in place" : ""));
  Random random(3);
  Runner runner;
  const std::int64_t cols = c.groups * c.width;
  TestMatrix x = test::random_matrix(random, c.in, c.rows, cols, 3.0f, c.padding);
  const TestArray<float> gamma = test::random_floats(random, c.width);
  TestMatrix y(c.out, c.rows, cols, c.padding);
  TestMatrix x_before(c.in, c.rows, cols, c.padding);
  x_before.restore(x.snapshot());
  TestMatrix& output = c.in_place ? x : y;
  const std::vector<unsigned char> before = output.snapshot();
  const TestArray<std::int32_t> count({static_cast<std::int32_t>(c.live)});
  const RmsNormParams params{.x = x.view(),
                             .gamma = gamma.get(),
                             .width = c.width,
                             .groups = c.groups,
                             .eps = 1e-5f,
                             .y = output.view(),
                             .rows = {c.rows, c.live < 0 ? nullptr : count.get()}};
  runner.run([&](OpContext& context) { rms_norm(context, params); }, {&output});

  TestMatrix untouched(c.out, c.rows, cols, c.padding);
  untouched.restore(before);
  for (std::int64_t r = 0; r < c.rows; ++r) {
    if (c.live >= 0 && r >= c.live) {
      ASSERT_EQ(output.row_bytes(r), untouched.row_bytes(r)) << "row " << r;
      continue;
    }
    for (std::int64_t first = 0; first < cols; first += c.width) {
      const double rstd = exact_rstd(x_before, r, first, c.width, 1e-5f);
      for (std::int64_t i = 0; i < c.width; ++i) {
        const double want = x_before.get(r, first + i) * rstd * gamma[i];
        test::expect_close(c.out, output.get(r, first + i), want, std::ldexp(std::abs(want), -20), "y", r, first + i);
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

TEST(RmsNorm, Shapes) {
  for (const DType in : {DType::kF32, DType::kBF16}) {
    for (const DType out : {DType::kF32, DType::kBF16}) {
      for (const std::int64_t width : {1, 7, 64, 131, 256, 640, 4099}) {
        for (const std::int64_t rows : {0, 1, 5}) check({.in = in, .out = out, .rows = rows, .width = width});
        check({.in = in, .out = out, .rows = 5, .width = width, .padding = 3});
      }
      check({.in = in, .out = out, .rows = test::at_most_on_simt(700, 150), .width = 256});
      check({.in = in, .out = out, .rows = 9, .width = 32, .groups = 8});
      check({.in = in, .out = out, .rows = 3, .width = 128, .groups = 5, .padding = 8});
    }
  }
}

TEST(RmsNorm, InPlaceAndPartlyLive) {
  const std::int64_t rows = test::at_most_on_simt(300, 40);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    check({.in = dtype, .out = dtype, .rows = rows, .width = 256, .in_place = true});
    check({.in = dtype, .out = dtype, .rows = 17, .width = 64, .groups = 4, .in_place = true, .padding = 8});
    for (const std::int64_t live : {std::int64_t{0}, std::int64_t{1}, rows - 1}) {
      check({.in = dtype, .out = dtype, .rows = rows, .live = live, .width = 256, .in_place = true});
      check({.in = dtype, .out = dtype, .rows = rows, .live = live, .width = 256});
    }
  }
}

// The FP32 output is bit-exact but for the order of the sum of squares, and is what is quantised. On the CPU it does
// not depend on the outputs that are asked for.
TEST(RmsNorm, QuantisesTheUnroundedNorm) {
  Random random(8);
  Runner runner;
  for (const DType in : {DType::kF32, DType::kBF16}) {
    for (const std::int64_t width : {1, 100, 128, 256, 300, 640, 4096, 5000}) {
      for (const auto& [kind, padding] : {std::pair{ScaleKind::kPerRow, 5},
                                          {ScaleKind::kPerRow, 8},
                                          {ScaleKind::kPerBlock, 5},
                                          {ScaleKind::kPerBlock, 8}}) {
        const std::int64_t rows = test::at_most_on_simt(37, 5);
        const TestMatrix x = test::random_matrix(random, in, rows, width);
        const TestArray<float> gamma = test::random_floats(random, width);
        TestMatrix norm(DType::kF32, rows, width);
        TestMatrix y(DType::kBF16, rows, width);
        TestOperand coded(kind, rows, width, padding, 2);
        RmsNormParams params{.x = x.view(), .gamma = gamma.get(), .width = width, .y = norm.view(), .rows = {rows}};
        runner.run_once([&](OpContext& context) { rms_norm(context, params); });
        params.y = y.view();
        params.quantized = coded.view();
        runner.run([&](OpContext& context) { rms_norm(context, params); }, {&y, &coded.codes, &coded.scales});

        const std::int64_t group = kind == ScaleKind::kPerRow ? width : kScaleBlock;
        for (std::int64_t r = 0; r < rows; ++r) {
          const std::vector<unsigned char> codes = coded.codes.row_bytes(r);
          for (std::int64_t begin = 0; begin < width; begin += group) {
            const std::int64_t end = std::min(begin + group, width);
            float amax = 0.0f;
            for (std::int64_t c = begin; c < end; ++c) amax = std::max(amax, std::abs(norm.get(r, c)));
            const float scale = std::max(amax / 448.0f, 1e-12f);
            ASSERT_TRUE(test::is_scale(coded.scale(r, begin), scale)) << r;
            for (std::int64_t c = begin; c < end; ++c) {
              ASSERT_TRUE(test::is_code_of(codes[static_cast<std::size_t>(c)],
                                           norm.get(r, c) * (1.0f / coded.scale(r, begin))));
              ASSERT_TRUE(test::is_bfloat16_of(y.get(r, c), norm.get(r, c)));
            }
          }
        }
      }
    }
  }
}

// Both kinds of codes and the rows themselves in one go are what each is alone.
TEST(RmsNorm, QuantisesInTwoWaysAtOnce) {
  Random random(9);
  Runner runner;
  for (const DType in : {DType::kF32, DType::kBF16}) {
    for (const auto& [width, padding] : {std::pair{100, 5}, {128, 8}, {304, 8}, {1792, 8}, {9216, 8}, {17000, 8}}) {
      // On a GPU the alignment of what is written decides how the row is read, and with it the order of its sum.
      if (width % 16 != 0 && test::test_device() == test::TestDevice::kCuda) continue;
      const std::int64_t rows = test::at_most_on_simt(37, 3);
      const TestArray<std::int32_t> live({static_cast<std::int32_t>(rows - 1)});
      TestMatrix x = test::random_matrix(random, in, rows, width);
      const TestArray<float> gamma = test::random_floats(random, width);
      TestMatrix y(in, rows, width), y_alone(in, rows, width);
      TestOperand by_row(ScaleKind::kPerRow, rows, width, padding), by_row_alone = by_row;
      TestOperand by_block(ScaleKind::kPerBlock, rows, width, padding, 2), by_block_alone = by_block;
      RmsNormParams params{.x = x.view(), .gamma = gamma.get(), .width = width, .rows = {rows, live.get()}};
      const auto issue = [&](OpContext& context) { rms_norm(context, params); };
      params.y = y_alone.view();
      runner.run_once(issue);
      params.y = {};
      params.quantized = by_row_alone.view();
      runner.run_once(issue);
      params.quantized = by_block_alone.view();
      runner.run_once(issue);
      params.y = y.view();
      params.quantized = by_row.view();
      params.quantized_blocks = by_block.view();
      runner.run(issue, {&y, &by_row.codes, &by_row.scales, &by_block.codes, &by_block.scales});
      EXPECT_TRUE(y.snapshot() == y_alone.snapshot()) << width;
      EXPECT_TRUE(by_row.codes.snapshot() == by_row_alone.codes.snapshot()) << width;
      EXPECT_TRUE(by_row.scales.snapshot() == by_row_alone.scales.snapshot()) << width;
      EXPECT_TRUE(by_block.codes.snapshot() == by_block_alone.codes.snapshot()) << width;
      EXPECT_TRUE(by_block.scales.snapshot() == by_block_alone.scales.snapshot()) << width;
      params.y = x.view();  // in place
      runner.run_once(issue);
      EXPECT_TRUE(x.row_bytes(0) == y.row_bytes(0)) << width;
      EXPECT_TRUE(by_block.codes.snapshot() == by_block_alone.codes.snapshot()) << width;
    }
  }
}

TEST(RmsNorm, RowsDoNotDependOnTheBatch) {
  Random random(4);
  const TestMatrix x = test::random_matrix(random, DType::kBF16, 600, 256);
  const TestArray<float> gamma = test::random_floats(random, 256);
  std::vector<unsigned char> whole;
  for (const int threads : {1, 2, 3}) {
    Runner runner(threads);
    for (const std::int64_t rows : {600, 599, 1}) {
      TestMatrix y(DType::kBF16, rows, 256);
      runner.run_once([&](OpContext& context) {
        rms_norm(context, {.x = x.view(), .gamma = gamma.get(), .width = 256, .y = y.view(), .rows = {rows}});
      });
      const std::vector<unsigned char> got = y.snapshot();
      if (whole.empty()) whole = got;
      ASSERT_TRUE(std::equal(got.begin(), got.end(), whole.begin())) << rows << " rows, " << threads << " threads";
    }
  }
}

TEST(RmsNorm, RefusesWhatItCannotDo) {
  Runner runner(1);
  Random random(1);
  const TestMatrix x = test::random_matrix(random, DType::kF32, 4, 16);
  const TestArray<float> gamma = test::random_floats(random, 16);
  TestMatrix y(DType::kF32, 4, 16);
  TestOperand coded(ScaleKind::kPerRow, 4, 16);
  const RmsNormParams good{.x = x.view(), .gamma = gamma.get(), .width = 16, .y = y.view(), .rows = {4}};
  const auto refusal = [&](auto&& change) {
    RmsNormParams params = good;
    change(params);
    return runner.refusal([&](OpContext& context) { rms_norm(context, params); });
  };
  EXPECT_EQ(refusal([](RmsNormParams&) {}), "");
  EXPECT_EQ(refusal([](RmsNormParams& p) { p.y.data = nullptr; }),
            "[rms_norm] got neither y nor quantized, want at least one output. Pass its address.");
  EXPECT_EQ(refusal([](RmsNormParams& p) { p.gamma = nullptr; }),
            "[rms_norm] got no gamma, want an array. Pass its address.");
  EXPECT_EQ(refusal([](RmsNormParams& p) { p.width = 8; }),
            "[rms_norm] got x of 16 columns, want 8. Pass a matrix of that width.");
  EXPECT_EQ(refusal([](RmsNormParams& p) { p.width = 0; }),
            "[rms_norm] got width = 0, want at least 1. Correct the shape.");
  EXPECT_NE(refusal([](RmsNormParams& p) { p.eps = -1.0f; }), "");
  EXPECT_NE(refusal([](RmsNormParams& p) { p.rows.capacity = 5; }), "");
  EXPECT_NE(refusal([&](RmsNormParams& p) {
              p.width = 8;
              p.groups = 2;
              p.quantized = coded.view();
            }),
            "");
  EXPECT_NE(refusal([&](RmsNormParams& p) {
              p.quantized = coded.view();
              p.quantized.scale_kind = ScaleKind::kNone;
            }),
            "");
  EXPECT_NE(refusal([&](RmsNormParams& p) { p.y = {x.data() + 4, DType::kF32, 4, 16, 16}; }), "");
  TestOperand blocks(ScaleKind::kPerBlock, 4, 16);
  EXPECT_EQ(refusal([&](RmsNormParams& p) {
              p.quantized = coded.view();
              p.quantized_blocks = blocks.view();
            }),
            "");
  EXPECT_EQ(refusal([&](RmsNormParams& p) { p.quantized_blocks = blocks.view(); }),
            "[rms_norm] got quantized_blocks without codes per row in quantized, want both. Pass a single kind as "
            "quantized.");
  EXPECT_NE(refusal([&](RmsNormParams& p) {
              p.quantized = coded.view();
              p.quantized_blocks = coded.view();
            }),
            "");
}

}  // namespace
}  // namespace onerec
