// Every tensor-core kernel of dense products, also those that no size chooses, with more and with fewer tiles than
// blocks.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "core/error.h"
#include "support/dense_kernels.h"
#include "support/oracle.h"
#include "support/runner.h"
#include "support/weights.h"

namespace onerec {
namespace {

using test::DenseKernel;
using test::Dot;
using test::Random;
using test::Runner;
using test::TestArray;
using test::TestInput;
using test::TestMatrix;
using test::TestWeight;

constexpr int kBlockCounts[] = {4, 132};
// Of a row, every so many outputs are compared with the oracle, others in the next row; of many rows some.
constexpr std::int64_t kCheckedStep = 7;
constexpr std::int64_t kCheckedRows = 150;

enum class Residual { kNone, kInPlace, kApart };

struct Case {
  std::int64_t rows;
  std::int64_t live;  // -1: no count
  std::int64_t inputs;
  std::int64_t outputs;
  bool bias = false;
  Residual residual = Residual::kNone;
};

constexpr Case kCases[] = {
    {1, -1, 272, 416, false, Residual::kNone},         {100, -1, 128, 32, true, Residual::kApart},
    {128, 77, 1792, 512, false, Residual::kInPlace},   {129, -1, 16, 352, true, Residual::kNone},
    {300, 130, 1040, 544, true, Residual::kApart},     {300, 0, 272, 288, false, Residual::kNone},
    {1000, 257, 640, 1056, false, Residual::kInPlace}, {2048, -1, 272, 800, true, Residual::kInPlace},
    {2500, 2111, 400, 160, false, Residual::kApart},   {512, -1, 1920, 480, true, Residual::kInPlace},
    {130, 129, 256, 96, false, Residual::kApart},      {384, 200, 3600, 224, true, Residual::kApart},
};

std::string text_of(const DenseKernel& kernel, const Case& c, int blocks) {
  return concat(kernel.name, ": ", c.rows, " rows (", c.live, " live) x ", c.inputs, " -> ", c.outputs, " on ", blocks,
                " blocks, bias ", c.bias, " residual ", static_cast<int>(c.residual));
}

bool is_live(const Case& c, std::int64_t r) { return c.live < 0 || r < c.live; }

// Every row, or of many some from everywhere, the last ones included.
bool is_checked(const Case& c, std::int64_t r) {
  const std::int64_t live = c.live < 0 ? c.rows : c.live;
  return live <= kCheckedRows || r % (live / kCheckedRows + 1) == 0 || r + 20 >= live;
}

// Nothing was written behind the columns. (Rows behind the live ones are unspecified up to the capacity.)
void expect_untouched(const TestMatrix& y, const std::vector<unsigned char>& before) {
  const auto element = static_cast<std::int64_t>(size_of(y.dtype()));
  const std::vector<unsigned char> after = y.snapshot();
  for (std::int64_t r = 0; r < y.rows(); ++r) {
    const auto begin = static_cast<std::ptrdiff_t>((r * y.stride() + y.cols()) * element);
    const auto end = static_cast<std::ptrdiff_t>((r + 1) * y.stride() * element);
    ASSERT_TRUE(std::equal(before.begin() + begin, before.begin() + end, after.begin() + begin)) << "row " << r;
  }
}

void check_linear(const DenseKernel& kernel, const Case& c) {
  const bool codes = kernel.in == DType::kE4M3;
  const WeightFormat format = codes ? WeightFormat::kFp8Channel : WeightFormat::kDense;
  const Residual residual_kind = kernel.out == DType::kF32 ? Residual::kNone : c.residual;
  Runner runner;
  Random random(5);
  const TestWeight weight(runner.backend(), random, format, kernel.in, 1, c.outputs, c.inputs);
  const TestInput x(random, format, kernel.in, c.rows, c.inputs, 16);
  const TestArray<float> bias = test::random_floats(random, c.outputs);
  const TestMatrix residual = test::random_matrix(random, kernel.out, c.rows, c.outputs, 2.0f, 8);
  const TestArray<std::int32_t> count({static_cast<std::int32_t>(c.live)});
  std::vector<unsigned char> first;
  for (const int blocks : kBlockCounts) {
    SCOPED_TRACE(text_of(kernel, c, blocks));
    TestMatrix y(kernel.out, c.rows, c.outputs, 8);
    if (residual_kind == Residual::kInPlace) y.restore(residual.snapshot());
    const std::vector<unsigned char> before = y.snapshot();
    const LinearParams params{.x = x.view(),
                              .weight = weight.packed(),
                              .bias = c.bias ? bias.get() : nullptr,
                              .residual = residual_kind == Residual::kNone      ? ConstMatrix{}
                                          : residual_kind == Residual::kInPlace ? ConstMatrix(y.view())
                                                                                : ConstMatrix(residual.view()),
                              .y = y.view(),
                              .rows = {c.rows, c.live < 0 ? nullptr : count.get()}};
    runner.run(
        [&](OpContext& context) {
          if (!context.measuring) run_kernel(context.stream, params, kernel, blocks);
        },
        {&y});
    expect_untouched(y, before);
    if (!first.empty()) {
      ASSERT_TRUE(y.snapshot() == first) << "the number of blocks shows";
      continue;
    }
    first = y.snapshot();
    for (std::int64_t r = 0; r < c.rows && is_live(c, r); ++r) {
      if (!is_checked(c, r)) continue;
      for (std::int64_t n = r % kCheckedStep; n < c.outputs; n += kCheckedStep) {
        Dot sum = test::dot(x, r, weight, 0, n, c.inputs);
        double want = sum.sum + (c.bias ? bias[n] : 0.0f);
        if (residual_kind != Residual::kNone) want += residual.get(r, n);
        sum.slack += 4 * test::rounding_error(DType::kF32, std::abs(want) + std::abs(sum.sum) + 4.0);
        test::expect_close(kernel.out, y.get(r, n), want, sum.slack, "y", r, n);
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

TEST(DenseKernels, Products) {
  const std::vector<DenseKernel> kernels = test::dense_kernels();
  if (kernels.empty()) GTEST_SKIP() << "this device has no tensor cores";
  for (const DenseKernel& kernel : kernels) {
    for (const Case& c : kCases) {
      ASSERT_EQ(c.outputs % kernel.output_multiple, 0);
      check_linear(kernel, c);
      if (HasFailure()) return;
    }
  }
}

struct Interval {
  double low;
  double high;
};

double silu(double x) { return x / (1.0 + std::exp(-x)); }

// Of silu(gate) * up, for arithmetic that is off by 2^-15 of its result.
Interval silu_product(const Interval& gate, const Interval& up) {
  constexpr double kLowestSilu = -1.2784645427610738;  // where silu turns
  std::array<double, 3> silus = {silu(gate.low), silu(gate.high), silu(gate.low)};
  if (gate.low < kLowestSilu && kLowestSilu < gate.high) silus[2] = silu(kLowestSilu);
  Interval value = {INFINITY, -INFINITY};
  for (const double s : silus) {
    for (const double u : {up.low, up.high}) {
      value.low = std::min(value.low, s * u);
      value.high = std::max(value.high, s * u);
    }
  }
  const double arithmetic = std::ldexp(std::max(std::abs(value.low), std::abs(value.high)), -15);
  return {value.low - arithmetic, value.high + arithmetic};
}

double as_bfloat16(double value) { return to_float(to_bfloat16(static_cast<float>(value))); }

// `outputs` are the weight's: gates and ups.
void check_swiglu(const DenseKernel& kernel, const Case& c) {
  const std::int64_t width = c.outputs / 2;
  Runner runner;
  Random random(6);
  const TestWeight weight(runner.backend(), random, WeightFormat::kFp8Channel, kernel.in, 1, c.outputs, c.inputs);
  const TestInput x(random, WeightFormat::kFp8Channel, kernel.in, c.rows, c.inputs, 16);
  const TestArray<float> bias = test::random_floats(random, c.outputs);
  const TestArray<std::int32_t> count({static_cast<std::int32_t>(c.live)});
  std::vector<unsigned char> first;
  for (const int blocks : kBlockCounts) {
    SCOPED_TRACE(text_of(kernel, c, blocks));
    TestMatrix y(DType::kBF16, c.rows, width, 8);
    const std::vector<unsigned char> before = y.snapshot();
    const LinearSwigluParams params{.x = x.view(),
                                    .weight = weight.packed(),
                                    .bias = c.bias ? bias.get() : nullptr,
                                    .width = width,
                                    .y = y.view(),
                                    .rows = {c.rows, c.live < 0 ? nullptr : count.get()}};
    runner.run(
        [&](OpContext& context) {
          if (!context.measuring) run_kernel(context.stream, params, y.view(), kernel, blocks);
        },
        {&y});
    expect_untouched(y, before);
    if (!first.empty()) {
      ASSERT_TRUE(y.snapshot() == first) << "the number of blocks shows";
      continue;
    }
    first = y.snapshot();
    const auto product = [&](std::int64_t r, std::int64_t n) -> Interval {
      const Dot exact = test::dot(x, r, weight, 0, n, c.inputs);
      const double sum = exact.sum + (c.bias ? bias[n] : 0.0f);
      const double slack = exact.slack + 4 * test::rounding_error(DType::kF32, std::abs(exact.sum) + 4.0);
      return {as_bfloat16(sum - slack), as_bfloat16(sum + slack)};
    };
    for (std::int64_t r = 0; r < c.rows && is_live(c, r); ++r) {
      if (!is_checked(c, r)) continue;
      for (std::int64_t n = r % kCheckedStep; n < width; n += kCheckedStep) {
        const Interval want = silu_product(product(r, n), product(r, width + n));
        ASSERT_GE(y.get(r, n), as_bfloat16(want.low)) << "row " << r << " column " << n;
        ASSERT_LE(y.get(r, n), as_bfloat16(want.high)) << "row " << r << " column " << n;
      }
    }
  }
}

TEST(DenseKernels, SwigluProducts) {
  const std::vector<DenseKernel> kernels = test::dense_swiglu_kernels();
  if (kernels.empty()) GTEST_SKIP() << "this device has no tensor cores";
  for (const DenseKernel& kernel : kernels) {
    for (Case c : kCases) {
      c.outputs = (c.outputs + 63) / 64 * 64;
      check_swiglu(kernel, c);
      if (HasFailure()) return;
    }
  }
}

}  // namespace
}  // namespace onerec
