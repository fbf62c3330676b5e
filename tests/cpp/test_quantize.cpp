// quantize: codes and scales equal to the formulas of docs/numerics.md to the bit.
#include "ops/quantize.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "support/runner.h"
#include "support/tensors.h"

namespace onerec {
namespace {

using test::Random;
using test::Runner;
using test::TestArray;
using test::TestMatrix;
using test::TestOperand;

void expect_formula(const TestMatrix& x, const TestOperand& coded, std::int64_t r) {
  const std::int64_t cols = x.cols();
  const std::int64_t group = coded.kind == ScaleKind::kPerRow ? cols : kScaleBlock;
  const std::vector<unsigned char> codes = coded.codes.row_bytes(r);
  for (std::int64_t begin = 0; begin < cols; begin += group) {
    const std::int64_t end = std::min(begin + group, cols);
    float amax = 0.0f;
    for (std::int64_t c = begin; c < end; ++c) amax = std::max(amax, std::abs(x.get(r, c)));
    const float scale = std::max(amax / 448.0f, 1e-12f);
    ASSERT_EQ(coded.scale(r, begin), scale) << "row " << r << " column " << begin;
    for (std::int64_t c = begin; c < end; ++c) {
      ASSERT_EQ(codes[static_cast<std::size_t>(c)], to_e4m3(x.get(r, c) * (1.0f / scale)))
          << "(" << r << ", " << c << ")";
    }
  }
}

class Quantize : public testing::TestWithParam<std::tuple<DType, ScaleKind>> {};

TEST_P(Quantize, FollowsTheFormula) {
  const auto [dtype, kind] = GetParam();
  Random random(2);
  Runner runner;
  // Rows that start anywhere, and at multiples of 16 bytes.
  for (const auto& [cols, padding] : {std::pair{1, 3},
                                      {13, 3},
                                      {127, 3},
                                      {128, 3},
                                      {129, 3},
                                      {256, 3},
                                      {4096, 3},
                                      {4097, 3},
                                      {9001, 3},
                                      {64, 16},
                                      {128, 16},
                                      {200, 16},
                                      {256, 16},
                                      {640, 16},
                                      {4096, 16},
                                      {9000, 16}}) {
    for (const std::int64_t rows : {std::int64_t{0}, std::int64_t{1}, std::int64_t{3}, test::at_most_on_simt(40, 7)}) {
      for (const std::int64_t live : {std::int64_t{-1}, std::int64_t{0}, rows / 2}) {
        TestMatrix x = test::random_matrix(random, dtype, rows, cols, 5.0f, padding);
        if (rows > 2) {
          for (std::int64_t c = 0; c < cols; ++c) x.set(2, c, 0.0f);
        }
        TestOperand coded(kind, rows, cols, padding, 1);
        const std::vector<unsigned char> before = coded.codes.snapshot();
        const TestArray<std::int32_t> count({static_cast<std::int32_t>(live)});
        const QuantizeParams params{
            .x = x.view(), .quantized = coded.view(), .rows = {rows, live < 0 ? nullptr : count.get()}};
        runner.run([&](OpContext& context) { quantize(context, params); }, {&coded.codes, &coded.scales});
        for (std::int64_t r = 0; r < rows; ++r) {
          if (live >= 0 && r >= live) {
            ASSERT_TRUE(std::isnan(coded.scale(r, 0))) << "row " << r << " is not live";
            ASSERT_EQ(coded.codes.row_bytes(r)[0], test::kPoison);
          } else {
            expect_formula(x, coded, r);
          }
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_P(Quantize, ManyRowsOnManyThreads) {
  const auto [dtype, kind] = GetParam();
  Random random(2);
  Runner runner(3);
  const std::int64_t rows = test::at_most_on_simt(500, 100);
  const TestMatrix x = test::random_matrix(random, dtype, rows, 384);
  TestOperand coded(kind, rows, 384);
  runner.run([&](OpContext& context) { quantize(context, {.x = x.view(), .quantized = coded.view(), .rows = {rows}}); },
             {&coded.codes, &coded.scales});
  for (std::int64_t r = 0; r < rows; ++r) expect_formula(x, coded, r);
}

INSTANTIATE_TEST_SUITE_P(Kinds, Quantize,
                         testing::Combine(testing::Values(DType::kF32, DType::kBF16),
                                          testing::Values(ScaleKind::kPerRow, ScaleKind::kPerBlock)),
                         [](const auto& info) {
                           return concat(name_of(std::get<0>(info.param)),
                                         std::get<1>(info.param) == ScaleKind::kPerRow ? "_per_row" : "_per_block");
                         });

TEST(QuantizeNumerics, EdgesOfTheRange) {
  Runner runner(1);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  TestMatrix x(DType::kF32, 3, 4);
  const float rows[3][4] = {
      {448.0f, -448.0f, 0x1p-9f, -0.0f}, {1e-30f, -1e-30f, 0.0f, 0.0f}, {kInfinity, 1.0f, -1.0f, -kInfinity}};
  for (std::int64_t r = 0; r < 3; ++r) {
    for (std::int64_t c = 0; c < 4; ++c) x.set(r, c, rows[r][c]);
  }
  TestOperand coded(ScaleKind::kPerRow, 3, 4);
  runner.run_once(
      [&](OpContext& context) { quantize(context, {.x = x.view(), .quantized = coded.view(), .rows = {3}}); });
  EXPECT_EQ(coded.scales[0], 1.0f);
  EXPECT_EQ(coded.codes.row_bytes(0), (std::vector<unsigned char>{0x7e, 0xfe, 0x01, 0x80}));
  EXPECT_EQ(coded.scales[1], 1e-12f);
  EXPECT_EQ(coded.codes.row_bytes(1), (std::vector<unsigned char>{0x00, 0x80, 0x00, 0x00}));
  EXPECT_EQ(coded.scales[2], kInfinity);
  const std::vector<unsigned char> infinite = coded.codes.row_bytes(2);
  EXPECT_EQ(infinite[0] & 0x7f, 0x7f) << "infinity times zero is NaN";
  EXPECT_EQ(infinite[1], 0x00);
  EXPECT_EQ(infinite[2], 0x80);
}

TEST(QuantizeNumerics, ANaNMakesItsGroupNaN) {
  Runner runner(1);
  for (const std::int64_t cols : {5, 5000}) {  // 5000 columns are searched in two runs
    for (const std::int64_t place : {std::int64_t{0}, cols - 1}) {
      TestMatrix x(DType::kF32, 1, cols);
      for (std::int64_t c = 0; c < cols; ++c) x.set(0, c, 1.0f);
      x.set(0, place, std::nanf(""));
      TestOperand coded(ScaleKind::kPerRow, 1, cols);
      runner.run_once(
          [&](OpContext& context) { quantize(context, {.x = x.view(), .quantized = coded.view(), .rows = {1}}); });
      EXPECT_TRUE(std::isnan(coded.scales[0]));
      for (const unsigned char code : coded.codes.row_bytes(0)) ASSERT_EQ(code & 0x7f, 0x7f);
    }
  }
}

TEST(QuantizeContract, RefusesWhatItCannotDo) {
  Runner runner(1);
  Random random(1);
  const TestMatrix x = test::random_matrix(random, DType::kF32, 4, 200);
  TestOperand coded(ScaleKind::kPerBlock, 4, 200);
  const QuantizeParams good{.x = x.view(), .quantized = coded.view(), .rows = {4}};
  const auto refusal = [&](auto&& change) {
    QuantizeParams params = good;
    change(params);
    return runner.refusal([&](OpContext& context) { quantize(context, params); });
  };
  EXPECT_EQ(refusal([](QuantizeParams&) {}), "");
  EXPECT_EQ(refusal([](QuantizeParams& p) { p.quantized.scale_stride = 3; }),
            "[quantize] got scales of quantized with stride 3, want at least 4, the capacity. Correct scale_stride.");
  EXPECT_EQ(refusal([](QuantizeParams& p) { p.quantized.scales = nullptr; }),
            "[quantize] got no scales of quantized, want one per group. Pass their address.");
  EXPECT_EQ(refusal([](QuantizeParams& p) { p.quantized.scale_kind = ScaleKind::kNone; }),
            "[quantize] got quantized as values without scales, want codes with scales. Set scale_kind to kPerRow or "
            "kPerBlock.");
  EXPECT_NE(refusal([](QuantizeParams& p) { p.x.dtype = DType::kE4M3; }), "");
  EXPECT_NE(refusal([](QuantizeParams& p) { p.quantized.values.dtype = DType::kU8; }), "");
  EXPECT_NE(refusal([](QuantizeParams& p) { p.quantized.values.cols = 199; }), "");
  EXPECT_NE(refusal([](QuantizeParams& p) { p.rows.capacity = 5; }), "");
}

}  // namespace
}  // namespace onerec
