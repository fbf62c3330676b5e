// swiglu and the exponential under it.
#include "ops/swiglu.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "backends/cpu/vector_math.h"
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

TEST(VectorMath, TheExponentialIsWithinTwoUnitsInTheLastPlace) {
  ONEREC_CPU_ONLY();
  double worst = 0.0;
  for (double x = -87.299; x < 88.3; x += 0.00037) {
    const auto argument = static_cast<float>(x);
    const double want = std::exp(static_cast<double>(argument));
    const double unit = std::ldexp(1.0, std::ilogb(want) - 23);
    worst = std::max(worst, std::abs(cpu::exp_of(argument) - want) / unit);
  }
  EXPECT_LE(worst, 2.0);
}

TEST(VectorMath, TheExponentialAtItsEnds) {
  ONEREC_CPU_ONLY();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(cpu::exp_of(0.0f), 1.0f);
  EXPECT_EQ(cpu::exp_of(-0.0f), 1.0f);
  EXPECT_EQ(cpu::exp_of(kInfinity), kInfinity);
  EXPECT_EQ(cpu::exp_of(-kInfinity), 0.0f);
  EXPECT_EQ(cpu::exp_of(88.4f), kInfinity);
  EXPECT_GT(cpu::exp_of(88.3f), 2.2e38f);
  EXPECT_LT(cpu::exp_of(-87.3f), 1.3e-38f);
  EXPECT_GT(cpu::exp_of(-87.3f), 1.1e-38f);
  EXPECT_EQ(cpu::exp_of(-88.0f), 0.0f) << "subnormal results are 0";
  EXPECT_TRUE(std::isnan(cpu::exp_of(std::nanf(""))));
}

TEST(VectorMath, SiluAtItsEnds) {
  ONEREC_CPU_ONLY();
  EXPECT_EQ(cpu::silu_of(0.0f), 0.0f);
  EXPECT_EQ(cpu::silu_of(200.0f), 200.0f);
  EXPECT_EQ(cpu::silu_of(-200.0f), 0.0f);
  EXPECT_TRUE(std::isnan(cpu::silu_of(std::nanf(""))));
}

double exact(const TestMatrix& gate_up, std::int64_t width, std::int64_t r, std::int64_t c) {
  const double gate = gate_up.get(r, c);
  return gate / (1.0 + std::exp(-gate)) * gate_up.get(r, width + c);
}

void check(DType dtype, std::int64_t rows, std::int64_t live, std::int64_t width, std::int64_t padding) {
  SCOPED_TRACE(concat(rows, " (", live, " live) x ", width, " ", name_of(dtype)));
  Random random(6);
  Runner runner;
  const TestMatrix gate_up = test::random_matrix(random, dtype, rows, 2 * width, 4.0f, padding);
  TestMatrix y(dtype, rows, width, padding);
  const TestMatrix untouched(dtype, rows, width, padding);
  const TestArray<std::int32_t> count({static_cast<std::int32_t>(live)});
  const SwigluParams params{
      .gate_up = gate_up.view(), .width = width, .y = y.view(), .rows = {rows, live < 0 ? nullptr : count.get()}};
  runner.run([&](OpContext& context) { swiglu(context, params); }, {&y});
  for (std::int64_t r = 0; r < rows; ++r) {
    if (live >= 0 && r >= live) {
      ASSERT_EQ(y.row_bytes(r), untouched.row_bytes(r)) << "row " << r;
      continue;
    }
    for (std::int64_t c = 0; c < width; ++c) {
      const double want = exact(gate_up, width, r, c);
      test::expect_close(dtype, y.get(r, c), want, std::ldexp(std::abs(want), -21), "y", r, c);
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

TEST(Swiglu, Shapes) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const std::int64_t width : {1, 7, 64, 131, 1024}) {
      for (const std::int64_t rows : {0, 1, 5, 97}) check(dtype, rows, -1, width, 0);
      for (const std::int64_t live : {0, 1, 96}) check(dtype, 97, live, width, 5);
    }
  }
}

// The FP32 op on the same values gives the products that are to be quantised.
TEST(Swiglu, QuantisesTheUnroundedProduct) {
  Random random(8);
  Runner runner;
  for (const std::int64_t width : {1, 100, 128, 300, 1024, 4096, 5000}) {
    for (const auto& [kind, padding] : {std::pair{ScaleKind::kPerRow, 5},
                                        {ScaleKind::kPerRow, 8},
                                        {ScaleKind::kPerBlock, 5},
                                        {ScaleKind::kPerBlock, 8}}) {
      const std::int64_t rows = test::at_most_on_simt(23, 4);
      const TestMatrix narrow = test::random_matrix(random, DType::kBF16, rows, 2 * width, 2.0f);
      TestMatrix wide(DType::kF32, rows, 2 * width);
      for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t c = 0; c < 2 * width; ++c) wide.set(r, c, narrow.get(r, c));
      }
      TestMatrix product(DType::kF32, rows, width);
      runner.run_once([&](OpContext& context) {
        swiglu(context, {.gate_up = wide.view(), .width = width, .y = product.view(), .rows = {rows}});
      });
      for (const TestMatrix* gate_up : {&narrow, static_cast<const TestMatrix*>(&wide)}) {
        TestOperand coded(kind, rows, width, padding, 2);
        const SwigluParams params{
            .gate_up = gate_up->view(), .width = width, .quantized = coded.view(), .rows = {rows}};
        runner.run([&](OpContext& context) { swiglu(context, params); }, {&coded.codes, &coded.scales});
        const std::int64_t group = kind == ScaleKind::kPerRow ? width : kScaleBlock;
        for (std::int64_t r = 0; r < rows; ++r) {
          const std::vector<unsigned char> codes = coded.codes.row_bytes(r);
          for (std::int64_t begin = 0; begin < width; begin += group) {
            const std::int64_t end = std::min(begin + group, width);
            float amax = 0.0f;
            for (std::int64_t c = begin; c < end; ++c) amax = std::max(amax, std::abs(product.get(r, c)));
            const float scale = std::max(amax / 448.0f, 1e-12f);
            ASSERT_EQ(coded.scale(r, begin), scale);
            for (std::int64_t c = begin; c < end; ++c) {
              ASSERT_EQ(codes[static_cast<std::size_t>(c)], to_e4m3(product.get(r, c) * (1.0f / scale)));
            }
          }
        }
      }
    }
  }
}

TEST(Swiglu, RefusesWhatItCannotDo) {
  Runner runner(1);
  Random random(1);
  const TestMatrix gate_up = test::random_matrix(random, DType::kF32, 4, 32);
  TestMatrix y(DType::kF32, 4, 16);
  TestOperand coded(ScaleKind::kPerRow, 4, 16);
  const SwigluParams good{.gate_up = gate_up.view(), .width = 16, .y = y.view(), .rows = {4}};
  const auto refusal = [&](auto&& change) {
    SwigluParams params = good;
    change(params);
    return runner.refusal([&](OpContext& context) { swiglu(context, params); });
  };
  EXPECT_EQ(refusal([](SwigluParams&) {}), "");
  EXPECT_EQ(refusal([&](SwigluParams& p) { p.quantized = coded.view(); }),
            "[swiglu] got both y and quantized, want one of them. Leave the other's data null.");
  EXPECT_EQ(refusal([](SwigluParams& p) { p.y.data = nullptr; }),
            "[swiglu] got neither y nor quantized, want one of them. Pass its address.");
  EXPECT_EQ(refusal([](SwigluParams& p) { p.width = 15; }),
            "[swiglu] got gate_up of 32 columns, want 30. Pass a matrix of that width.");
  EXPECT_NE(refusal([](SwigluParams& p) { p.y.dtype = DType::kBF16; }), "");
  EXPECT_NE(refusal([](SwigluParams& p) { p.rows.capacity = 5; }), "");
  EXPECT_NE(refusal([&](SwigluParams& p) { p.y = {gate_up.data(), DType::kF32, 4, 16, 32}; }), "");
}

}  // namespace
}  // namespace onerec
