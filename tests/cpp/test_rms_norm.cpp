// rms_norm: rows and groups, plain and quantised output, in place, and its refusals.
#include "ops/rms_norm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "support/norm_codes.h"
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

// The FP32 output is bit-exact but for the order of the sum of squares, and is what codes per block are made from. On
// the CPU it does not depend on the outputs that are asked for.
TEST(RmsNorm, CodesPerBlockAreOfTheUnroundedNorm) {
  Random random(8);
  Runner runner;
  for (const DType in : {DType::kF32, DType::kBF16}) {
    for (const std::int64_t width : {1, 100, 128, 256, 300, 640, 4096, 5000}) {
      for (const std::int64_t padding : {5, 8}) {
        const std::int64_t rows = test::at_most_on_simt(37, 5);
        const TestMatrix x = test::random_matrix(random, in, rows, width);
        const TestArray<float> gamma = test::random_floats(random, width);
        TestMatrix norm(DType::kF32, rows, width);
        TestMatrix y(DType::kBF16, rows, width);
        TestOperand coded(ScaleKind::kPerBlock, rows, width, padding, 2);
        RmsNormParams params{.x = x.view(), .gamma = gamma.get(), .width = width, .y = norm.view(), .rows = {rows}};
        runner.run_once([&](OpContext& context) { rms_norm(context, params); });
        params.y = y.view();
        params.quantized = coded.view();
        runner.run([&](OpContext& context) { rms_norm(context, params); }, {&y, &coded.codes, &coded.scales});

        for (std::int64_t r = 0; r < rows; ++r) {
          const std::vector<unsigned char> codes = coded.codes.row_bytes(r);
          for (std::int64_t begin = 0; begin < width; begin += kScaleBlock) {
            const std::int64_t end = std::min(begin + kScaleBlock, width);
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

// [rows, width]: the rows cycle through these magnitudes.
TestMatrix scaled_rows(Random& random, DType dtype, std::int64_t rows, std::int64_t width) {
  constexpr float kMagnitudes[] = {1.0f, 1e-10f, 3.0f, 1e10f, 0.3f, 1e-14f, 1e14f};
  TestMatrix x(dtype, rows, width);
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < width; ++c) x.set(r, c, test::normal(random, kMagnitudes[r % std::size(kMagnitudes)]));
  }
  return x;
}

TEST(RmsNorm, CodesPerRowAreOfThePlainProducts) {
  Random random(10);
  Runner runner;
  for (const DType in : {DType::kF32, DType::kBF16}) {
    for (const std::int64_t width : {1, 100, 128, 256, 300, 640, 4096, 5000}) {
      for (const std::int64_t padding : {5, 8}) {
        for (const float gamma_magnitude : {0.02f, 1.0f, 30.0f}) {
          const std::int64_t rows = test::at_most_on_simt(37, 7);
          const TestMatrix x = scaled_rows(random, in, rows, width);
          const TestArray<float> gamma = test::random_floats(random, width, gamma_magnitude);
          TestMatrix y(DType::kBF16, rows, width);
          TestOperand coded(ScaleKind::kPerRow, rows, width, padding, 2);
          const RmsNormParams params{.x = x.view(),
                                     .gamma = gamma.get(),
                                     .width = width,
                                     .eps = 1e-5f,
                                     .gamma_magnitude = test::largest_magnitude(gamma),
                                     .y = y.view(),
                                     .quantized = coded.view(),
                                     .rows = {rows}};
          runner.run([&](OpContext& context) { rms_norm(context, params); }, {&y, &coded.codes, &coded.scales});
          for (std::int64_t r = 0; r < rows; ++r) {
            test::check_norm_codes(x, gamma, 1e-5f, coded, r);
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

// Rows with a value that stands out: it takes part in the scale through the mean square alone.
TEST(RmsNorm, CodesPerRowStandForTheNorm) {
  Random random(11);
  Runner runner;
  constexpr std::int64_t kRows = 6;
  constexpr std::int64_t kWidth = 512;
  TestMatrix x = test::random_matrix(random, DType::kBF16, kRows, kWidth);
  for (std::int64_t r = 0; r < kRows; ++r) x.set(r, 17 * r, std::ldexp(1.0f, static_cast<int>(2 * r)));
  const TestArray<float> gamma = test::random_floats(random, kWidth);
  const float largest = test::largest_magnitude(gamma);
  TestOperand coded(ScaleKind::kPerRow, kRows, kWidth);
  runner.run_once([&](OpContext& context) {
    rms_norm(context, {.x = x.view(),
                       .gamma = gamma.get(),
                       .width = kWidth,
                       .gamma_magnitude = largest,
                       .quantized = coded.view(),
                       .rows = {kRows}});
  });
  for (std::int64_t r = 0; r < kRows; ++r) {
    const double rstd = exact_rstd(x, r, 0, kWidth, 1e-6f);
    const double scale = coded.scale(r, 0);
    const double power = scale / rstd;
    EXPECT_NEAR(std::log2(power), std::round(std::log2(power)), 2e-6) << r;
    for (std::int64_t c = 0; c < kWidth; ++c) {
      const double want = x.get(r, c) * rstd * gamma[c];
      const double slack = std::ldexp(std::abs(want), -18);
      test::expect_close(DType::kE4M3, coded.codes.get(r, c), want / scale, slack / scale, "a code", r, c);
      if (HasFatalFailure()) return;
    }
  }
}

// A row that is not finite, or whose squares are not, gives NaN by its scale. Others give numbers.
TEST(RmsNorm, CodesPerRowOfExtremeRows) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  Random random(12);
  Runner runner;
  for (const DType in : {DType::kF32, DType::kBF16}) {
    for (const std::int64_t width : {8, 300, 1792, 9216}) {
      TestMatrix x = test::random_matrix(random, in, 9, width);
      const std::int64_t last = width - 1;
      x.set(0, last, std::nanf(""));
      x.set(1, last, kInfinity);
      x.set(2, 0, -kInfinity);
      for (std::int64_t c = 0; c < width; ++c) {
        x.set(3, c, 0.0f);
        x.set(4, c, 1e20f * x.get(4, c));   // squares are infinite
        x.set(5, c, 1e-20f * x.get(5, c));  // squares are below the normal numbers
        x.set(6, c, 1e17f);                 // beyond the largest power
        x.set(7, c, c == last ? 1.0f : 0.0f);
      }
      const TestArray<float> gamma = test::random_floats(random, width);
      const float largest = test::largest_magnitude(gamma);
      TestOperand coded(ScaleKind::kPerRow, 9, width, 8);
      runner.run_once([&](OpContext& context) {
        rms_norm(context, {.x = x.view(),
                           .gamma = gamma.get(),
                           .width = width,
                           .eps = 1e-5f,
                           .gamma_magnitude = largest,
                           .quantized = coded.view(),
                           .rows = {9}});
      });
      for (const std::int64_t r : {0, 1, 2, 4}) EXPECT_TRUE(std::isnan(coded.scale(r, 0))) << r << ", " << width;
      EXPECT_TRUE(std::isnan(coded.codes.get(0, last)));
      for (const std::int64_t r : {3, 6, 7, 8}) {
        test::check_norm_codes(x, gamma, 1e-5f, coded, r);
        if (HasFatalFailure()) return;
      }
      // All products are below half of the smallest code, whatever the machine makes of the squares.
      for (const std::int64_t r : {3, 5}) {
        const double scale = test::norm_code_power(0.0, largest) / std::sqrt(1e-5);
        EXPECT_NEAR(coded.scale(r, 0), scale, 2e-6 * scale) << r << ", " << width;
        for (std::int64_t c = 0; c < width; ++c) ASSERT_EQ(coded.codes.get(r, c), 0.0f) << r << ", " << c;
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
      RmsNormParams params{.x = x.view(),
                           .gamma = gamma.get(),
                           .width = width,
                           .gamma_magnitude = test::largest_magnitude(gamma),
                           .rows = {rows, live.get()}};
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
  const RmsNormParams good{.x = x.view(),
                           .gamma = gamma.get(),
                           .width = 16,
                           .gamma_magnitude = test::largest_magnitude(gamma),
                           .y = y.view(),
                           .rows = {4}};
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
  for (const float magnitude : {-1.0f, std::nanf(""), std::numeric_limits<float>::infinity()}) {
    EXPECT_EQ(refusal([&](RmsNormParams& p) { p.gamma_magnitude = magnitude; }), "");
    EXPECT_NE(refusal([&](RmsNormParams& p) {
                p.gamma_magnitude = magnitude;
                p.quantized = coded.view();
              }).find("want the largest magnitude of gamma"),
              std::string::npos);
  }
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
