// linear_norm, and the products that read its codes: of inputs with a scale per block, normalised or still to be.
#include "ops/linear_norm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "core/error.h"
#include "ops/linear_swiglu.h"
#include "support/oracle.h"
#include "support/runner.h"
#include "support/weights.h"

namespace onerec::test {
namespace {

constexpr float kEps = 1e-5f;

// Codes with scales per block in the layout of a pass, and the sums of squares that may come with them.
struct Blocks {
  TestOperand operand;
  TestArray<float> square_sums;

  Blocks(std::int64_t rows, std::int64_t cols, std::int64_t padding = 0)
      : operand(ScaleKind::kPerBlock, rows, cols, padding, scale_stride_for(rows) - rows),
        square_sums(operand.scale_stride * scale_blocks(cols)) {}

  Operand view(bool with_squares) const {
    Operand view = operand.view();
    if (!with_squares) return view;
    view.square_sums = square_sums.get();
    view.eps = kEps;
    return view;
  }

  void fill(Random& random) {
    operand.fill_random(random);
    for (float& sum : square_sums) sum = 1.0f + 100.0f * std::abs(normal(random));
  }

  // What a row is still to be multiplied by.
  double row_factor(std::int64_t r) const {
    double sum = 0.0;
    const std::int64_t cols = operand.codes.cols();
    for (std::int64_t b = 0; b < scale_blocks(cols); ++b) sum += square_sums[b * operand.scale_stride + r];
    return 1.0 / std::sqrt(sum / static_cast<double>(cols) + kEps);
  }

  double value(std::int64_t r, std::int64_t c) const {
    return static_cast<double>(operand.codes.get(r, c)) * operand.scale(r, c);
  }
};

Dot dot(const Blocks& x, std::int64_t row, double factor, const TestWeight& weight, std::int64_t n,
        std::int64_t inputs) {
  Dot result;
  double magnitude = 0.0;
  for (std::int64_t k = 0; k < inputs; ++k) {
    const double product = factor * x.value(row, k) * weight.value(0, n, k);
    result.sum += product;
    magnitude += std::abs(product);
  }
  result.slack = dot_slack(DType::kE4M3, magnitude);
  return result;
}

struct Shape {
  std::int64_t rows;
  std::int64_t live;  // -1: no count
  std::int64_t inputs;
  std::int64_t outputs;
  bool squares = false;  // rows are still to be normalised
  bool bias = false;
  bool residual = false;
  std::int64_t padding = 0;
};

std::string name(const Shape& s) {
  return concat(s.rows, " (", s.live, " live) x ", s.inputs, " -> ", s.outputs, s.squares ? " squares" : "",
                s.bias ? " bias" : "", s.residual ? " residual" : "");
}

// Of the rows that a fast kernel leaves to the reader: only devices that have one read them.
bool reads_squares() { return test_device() == TestDevice::kCuda; }

void check_linear(const Shape& s) {
  SCOPED_TRACE(name(s));
  Random random(3);
  Runner runner;
  const TestWeight weight(runner.backend(), random, WeightFormat::kFp8Channel, DType::kE4M3, 1, s.outputs, s.inputs);
  Blocks x(s.rows, s.inputs, s.padding);
  x.fill(random);
  const TestArray<float> bias = random_floats(random, s.outputs);
  TestMatrix y = random_matrix(random, DType::kBF16, s.rows, s.outputs, 2.0f, s.padding);
  TestMatrix before(DType::kBF16, s.rows, s.outputs, s.padding);
  before.restore(y.snapshot());
  const TestArray<std::int32_t> count({static_cast<std::int32_t>(s.live)});
  runner.run(
      [&](OpContext& context) {
        linear(context, {.x = x.view(s.squares),
                         .weight = weight.packed(),
                         .bias = s.bias ? bias.get() : nullptr,
                         .residual = s.residual ? ConstMatrix(y.view()) : ConstMatrix{},
                         .y = y.view(),
                         .rows = {s.rows, s.live < 0 ? nullptr : count.get()}});
      },
      {&y});
  for (std::int64_t r = 0; r < (s.live < 0 ? s.rows : s.live); ++r) {
    for (std::int64_t n = 0; n < s.outputs; ++n) {
      Dot sum = dot(x, r, s.squares ? x.row_factor(r) : 1.0, weight, n, s.inputs);
      const double want = sum.sum + (s.bias ? bias[n] : 0.0) + (s.residual ? before.get(r, n) : 0.0);
      sum.slack += 4 * rounding_error(DType::kF32, std::abs(want) + std::abs(sum.sum) + 4.0);
      expect_close(DType::kBF16, y.get(r, n), want, sum.slack, "y", r, n);
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

// Tiles of 64 and of 128 rows, whole and partial ones of rows, columns and K.
TEST(LinearBlocks, Shapes) {
  if (test_device() == TestDevice::kSimt) GTEST_SKIP() << "test_linear has the kernels of this device";
  for (const bool squares : {false, true}) {
    if (squares && !reads_squares()) continue;
    for (const bool residual : {false, true}) {
      check_linear({130, -1, 256, 128, squares, true, residual});
      check_linear({200, 131, 640, 224, squares, false, residual, 16});
      check_linear({65, 3, 400, 2080, squares, true, residual});
      check_linear({1100, 1050, 272, 1824, squares, false, residual});
      check_linear({2, -1, 1792, 96, squares, true, residual});
      check_linear({64, 0, 128, 128, squares, true, residual});
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

// A NaN, an infinity or the least scale stays in its row.
TEST(LinearBlocks, RowsKeepTheirScales) {
  if (test_device() == TestDevice::kSimt) GTEST_SKIP() << "test_linear has the kernels of this device";
  Random random(4);
  Runner runner;
  const TestWeight weight(runner.backend(), random, WeightFormat::kFp8Channel, DType::kE4M3, 1, 128, 512);
  Blocks x(160, 512);
  x.fill(random);
  Operand view = x.view(false);
  view.scales[view.scale_stride + 7] = std::numeric_limits<float>::quiet_NaN();
  for (int b = 0; b < 4; ++b) view.scales[b * view.scale_stride + 9] = 1e-12f;
  view.scales[2 * view.scale_stride + 11] = 1e-12f;
  TestMatrix y(DType::kBF16, 160, 128);
  runner.run(
      [&](OpContext& context) {
        linear(context, {.x = view, .weight = weight.packed(), .y = y.view(), .rows = {160}});
      },
      {&y});
  for (std::int64_t r = 0; r < 160; ++r) {
    for (std::int64_t n = 0; n < 128; ++n) {
      if (r == 7) {
        ASSERT_TRUE(std::isnan(y.get(r, n)));
        continue;
      }
      const Dot sum = dot(x, r, 1.0, weight, n, 512);
      expect_close(DType::kBF16, y.get(r, n), sum.sum, sum.slack, "y", r, n);
    }
  }
}

struct Problem {
  Shape shape;
  Random random{5};
  TestWeight weight;
  Blocks x;
  TestArray<float> bias, gamma;
  TestMatrix h;
  Blocks codes;
  TestArray<std::int32_t> count;

  Problem(Backend& backend, const Shape& s)
      : shape(s),
        weight(backend, random, WeightFormat::kFp8Channel, DType::kE4M3, 1, s.outputs, s.inputs),
        x(s.rows, s.inputs, s.padding),
        bias(random_floats(random, s.outputs)),
        gamma(random_floats(random, s.outputs)),
        h(random_matrix(random, DType::kBF16, s.rows, s.outputs, 2.0f, s.padding)),
        codes(s.rows, s.outputs, s.padding),
        count({static_cast<std::int32_t>(s.live)}) {
    x.fill(random);
  }

  LinearNormParams params(const LinearWeight* reader) const {
    const Extent rows{shape.rows, shape.live < 0 ? nullptr : count.get()};
    return {.product = {.x = x.view(shape.squares),
                        .weight = weight.packed(),
                        .bias = shape.bias ? bias.get() : nullptr,
                        .residual = h.view(),
                        .y = h.view(),
                        .rows = rows},
            .norm = {.x = h.view(),
                     .gamma = gamma.get(),
                     .width = shape.outputs,
                     .eps = kEps,
                     .quantized = codes.view(true),
                     .rows = rows},
            .reader = reader};
  }
};

// h as linear() makes it, and codes of its norm, whole or but for a factor of each row.
void check_norm(const Shape& s, bool wants_one_kernel) {
  SCOPED_TRACE(name(s));
  Runner runner;
  Problem problem(runner.backend(), s);
  const TestWeight reader(runner.backend(), problem.random, WeightFormat::kFp8Channel, DType::kE4M3, 1, 256, s.outputs);
  const LinearNormParams params = problem.params(reader.packed());
  const std::vector<unsigned char> before = problem.h.snapshot();
  OpContext context{.backend = runner.backend(), .stream = runner.stream()};
  const bool left = norm_left_to_reader(context, params);
  EXPECT_EQ(left, wants_one_kernel && reads_squares());

  runner.run([&](OpContext& c) { linear_norm(c, params); },
             {&problem.h, &problem.codes.operand.codes, &problem.codes.operand.scales, &problem.codes.square_sums});
  const std::vector<unsigned char> at_once = problem.h.snapshot();
  problem.h.restore(before);
  runner.run_once([&](OpContext& c) { linear(c, params.product); });
  ASSERT_TRUE(at_once == problem.h.snapshot()) << "h is not what linear() makes";

  const std::int64_t live = s.live < 0 ? s.rows : s.live;
  for (std::int64_t r = 0; r < live; ++r) {
    double total = 0.0;
    for (std::int64_t c = 0; c < s.outputs; ++c)
      total += static_cast<double>(problem.h.get(r, c)) * problem.h.get(r, c);
    const double factor = 1.0 / std::sqrt(total / static_cast<double>(s.outputs) + kEps);
    if (left) {
      ASSERT_NEAR(problem.codes.row_factor(r), factor, 1e-5 * factor);
    }
    for (std::int64_t begin = 0; begin < s.outputs; begin += kScaleBlock) {
      const std::int64_t end = std::min(begin + kScaleBlock, s.outputs);
      const auto want = [&](std::int64_t c) {
        return static_cast<double>(problem.h.get(r, c)) * problem.gamma[c] * (left ? 1.0 : factor);
      };
      double largest = 0.0;
      for (std::int64_t c = begin; c < end; ++c) largest = std::max(largest, std::abs(want(c)));
      const double scale = std::max(largest / 448.0, 1e-12);
      ASSERT_NEAR(problem.codes.operand.scale(r, begin), scale, 4e-6 * scale) << r;
      for (std::int64_t c = begin; c < end; ++c) {
        const double value = want(c) / scale;
        expect_close(DType::kE4M3, problem.codes.operand.codes.get(r, c), value, std::ldexp(std::abs(value), -18),
                     "a code", r, c);
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }

  // Who reads them makes the norm of them.
  TestMatrix out(DType::kBF16, s.rows, 256);
  runner.run_once([&](OpContext& c) {
    linear(c, {.x = problem.codes.view(left), .weight = reader.packed(), .y = out.view(), .rows = params.norm.rows});
  });
  for (std::int64_t r = 0; r < live; ++r) {
    const double factor = left ? problem.codes.row_factor(r) : 1.0;
    for (std::int64_t n = 0; n < 256; ++n) {
      const Dot sum = dot(problem.codes, r, factor, reader, n, s.outputs);
      expect_close(DType::kBF16, out.get(r, n), sum.sum, sum.slack, "the reader's y", r, n);
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

TEST(LinearNorm, Shapes) {
  check_norm({5, 3, 144, 256}, true);
  if (test_device() == TestDevice::kSimt) return;  // slow
  check_norm({130, -1, 256, 128, false, true}, true);
  check_norm({512, 500, 640, 640, reads_squares(), false, false, 16}, true);
  check_norm({70, 0, 128, 384}, true);
  check_norm({66, 65, 1792, 1792, false, true}, true);
  check_norm({1, -1, 256, 256}, false);
  check_norm({40, -1, 256, 192}, false);   // not whole blocks
  check_norm({1040, 7, 128, 128}, false);  // many rows
}

TEST(LinearNorm, OneKernelForCodesAlone) {
  Runner runner;
  Problem problem(runner.backend(), {64, -1, 128, 128});
  const TestWeight reader(runner.backend(), problem.random, WeightFormat::kFp8Channel, DType::kE4M3, 1, 96, 128);
  const auto fuses = [&](const auto& change) {
    LinearNormParams params = problem.params(reader.packed());
    change(params);
    return runner.backend().fuses_linear_norm(params);
  };
  EXPECT_EQ(fuses([](LinearNormParams&) {}), reads_squares());
  EXPECT_FALSE(fuses([](LinearNormParams& p) { p.reader = nullptr; }));
  EXPECT_FALSE(fuses([](LinearNormParams& p) { p.norm.quantized.square_sums = nullptr; }));
  EXPECT_FALSE(fuses([](LinearNormParams& p) { p.norm.quantized.scale_stride = 64; }));
  TestMatrix y(DType::kBF16, 64, 128);
  EXPECT_FALSE(fuses([&](LinearNormParams& p) { p.norm.y = y.view(); }));
}

TEST(LinearNorm, RefusesANormOfSomethingElse) {
  Runner runner;
  Problem problem(runner.backend(), {4, -1, 128, 128});
  const auto refusal = [&](const auto& change) {
    LinearNormParams params = problem.params(nullptr);
    change(params);
    return runner.refusal([&](OpContext& context) { linear_norm(context, params); });
  };
  EXPECT_EQ(refusal([](LinearNormParams&) {}), "");
  EXPECT_NE(refusal([](LinearNormParams& p) { p.norm.x.cols = 64; }).find("does not read what is made"),
            std::string::npos);
  EXPECT_NE(refusal([](LinearNormParams& p) { p.norm.rows.capacity = 3; }).find("the same rows"), std::string::npos);
}

// Codes of silu(gate) * up with a scale per block, of inputs with one.
void check_swiglu(const Shape& s) {
  SCOPED_TRACE(name(s));
  Random random(6);
  Runner runner;
  const std::int64_t width = s.outputs / 2;
  const TestWeight weight(runner.backend(), random, WeightFormat::kFp8Channel, DType::kE4M3, 1, s.outputs, s.inputs);
  Blocks x(s.rows, s.inputs, s.padding);
  x.fill(random);
  const TestArray<float> bias = random_floats(random, s.outputs);
  TestMatrix gate_up(DType::kBF16, s.rows, s.outputs);
  Blocks hidden(s.rows, width, s.padding);
  const TestArray<std::int32_t> count({static_cast<std::int32_t>(s.live)});
  runner.run(
      [&](OpContext& context) {
        linear_swiglu(context, {.x = x.view(s.squares),
                                .weight = weight.packed(),
                                .bias = s.bias ? bias.get() : nullptr,
                                .width = width,
                                .gate_up = gate_up.view(),
                                .quantized = hidden.view(false),
                                .rows = {s.rows, s.live < 0 ? nullptr : count.get()}});
      },
      {&hidden.operand.codes, &hidden.operand.scales});
  const auto rounded_sum = [&](std::int64_t r, std::int64_t n, double& slack) {
    const Dot sum = dot(x, r, s.squares ? x.row_factor(r) : 1.0, weight, n, s.inputs);
    const double value = sum.sum + (s.bias ? bias[n] : 0.0);
    slack = sum.slack + rounding_error(DType::kBF16, std::abs(value) + sum.slack);
    return value;
  };
  for (std::int64_t r = 0; r < (s.live < 0 ? s.rows : s.live); ++r) {
    for (std::int64_t begin = 0; begin < width; begin += kScaleBlock) {
      const std::int64_t end = std::min(begin + kScaleBlock, width);
      std::vector<double> want;
      std::vector<double> slack;
      double largest = 0.0;
      double off = 0.0;
      for (std::int64_t c = begin; c < end; ++c) {
        double gate_slack = 0.0;
        double up_slack = 0.0;
        const double gate = rounded_sum(r, c, gate_slack);
        const double up = rounded_sum(r, width + c, up_slack);
        const double silu = gate / (1.0 + std::exp(-gate));
        want.push_back(silu * up);
        // silu's slope is at most 1.1; the product may be rounded to BF16, and be off by 2^-16 of its size.
        slack.push_back(1.1 * gate_slack * (std::abs(up) + up_slack) + std::abs(silu) * up_slack +
                        std::ldexp(std::abs(silu * up), -7));
        if (std::abs(want.back()) > largest) {
          largest = std::abs(want.back());
        }
        off = std::max(off, slack.back());
      }
      const double scale = hidden.operand.scale(r, begin);
      ASSERT_NEAR(scale, std::max(largest / 448.0, 1e-12), off / 448.0 + 1e-6 * scale) << "row " << r;
      for (std::int64_t c = begin; c < end; ++c) {
        const auto i = static_cast<std::size_t>(c - begin);
        expect_close(DType::kE4M3, hidden.operand.codes.get(r, c), want[i] / scale, slack[i] / scale, "a code", r, c);
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

TEST(LinearBlocks, SwigluCodes) {
  if (test_device() == TestDevice::kSimt) GTEST_SKIP() << "slow";
  for (const bool squares : {false, true}) {
    if (squares && !reads_squares()) continue;
    check_swiglu({140, -1, 256, 512, squares, true});
    check_swiglu({512, 300, 144, 768, squares, false, false, 16});
    check_swiglu({640, -1, 400, 256, squares});
    check_swiglu({9, 7, 256, 320, squares});
    if (testing::Test::HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace onerec::test
