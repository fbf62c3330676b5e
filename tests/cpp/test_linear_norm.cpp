// Norms that are left pending: how products make their codes, and what products make of them.
#include "ops/linear_norm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "core/error.h"
#include "ops/linear_swiglu.h"
#include "support/dense_kernels.h"
#include "support/oracle.h"
#include "support/runner.h"
#include "support/weights.h"

namespace onerec::test {
namespace {

constexpr float kEps = 1e-5f;
constexpr double kSquareParts = 4294967296.0;  // 2^32

// Codes per row with what a norm leaves pending.
struct Pending {
  TestOperand operand;
  TestArray<std::uint64_t> squares, next_squares;
  float gamma_magnitude;

  Pending(std::int64_t rows, std::int64_t cols, float gamma_magnitude_, std::int64_t padding = 0)
      : operand(ScaleKind::kPerRow, rows, cols, padding),
        squares(rows),
        next_squares(rows),
        gamma_magnitude(gamma_magnitude_) {}

  Operand view() const {
    Operand view = operand.view();
    view.pending = {.squares = squares.get(),
                    .next_squares = next_squares.get(),
                    .width = operand.codes.cols(),
                    .unit = 1.0f / norm_code_scale(gamma_magnitude),
                    .eps = kEps};
    return view;
  }

  // In units of which a row's squares are counted.
  double root(std::int64_t r) const { return operand.scales[r] / norm_code_scale(gamma_magnitude); }
  double mean_square(std::int64_t r) const {
    const double sum = static_cast<double>(squares[r]) / kSquareParts * root(r) * root(r);
    return sum / static_cast<double>(operand.codes.cols());
  }
  double row_scale(std::int64_t r) const { return operand.scales[r] / std::sqrt(mean_square(r) + kEps); }
  std::vector<GuardedBuffer*> buffers() { return {&operand.codes, &operand.scales, &squares, &next_squares}; }
};

float magnitude_of(const TestArray<float>& gamma) {
  float largest = 0.0f;
  for (const float value : gamma) largest = std::max(largest, std::abs(value));
  return largest;
}

double mean_square_of(const TestMatrix& x, std::int64_t r) {
  double sum = 0.0;
  for (std::int64_t c = 0; c < x.cols(); ++c) sum += static_cast<double>(x.get(r, c)) * x.get(r, c);
  return sum / static_cast<double>(x.cols());
}

// The codes are those of gamma * x, by the scales that are there, and the squares are x's.
void expect_codes(const Pending& got, const TestMatrix& x, const TestArray<float>& gamma, std::int64_t r) {
  const float inverse = 1.0f / got.operand.scales[r];
  int exponent = 0;
  ASSERT_EQ(std::frexp(got.operand.scales[r], &exponent), 0.5f) << "the scale of row " << r << " is no power of two";
  for (std::int64_t c = 0; c < x.cols(); ++c) {
    ASSERT_EQ(got.operand.codes.get(r, c), from_e4m3(to_e4m3(x.get(r, c) * gamma[c] * inverse)))
        << "code (" << r << ", " << c << ")";
  }
  const double want = mean_square_of(x, r);
  ASSERT_NEAR(got.mean_square(r), want, 2e-6 * want) << "squares of row " << r;
  ASSERT_EQ(got.next_squares[r], 0u);
}

struct Shape {
  std::int64_t rows;
  std::int64_t live;  // -1: no count
  std::int64_t inputs;
  std::int64_t outputs;
  bool bias = false;
  bool pending = false;  // the norm of x
  std::int64_t padding = 0;
};

std::string name(const Shape& s) {
  return concat(s.rows, " (", s.live, " live) x ", s.inputs, " -> ", s.outputs, s.bias ? " bias" : "",
                s.pending ? " pending" : "");
}

// A product that adds to h, whose norm before and behind it is pending.
struct Problem {
  Shape shape;
  Random random{5};
  TestWeight weight;
  Pending x;
  TestArray<float> bias, gamma;
  TestMatrix h, before;
  Pending previous, norm;
  TestArray<std::int32_t> count, overflowed;

  Problem(Backend& backend, const Shape& s)
      : shape(s),
        weight(backend, random, WeightFormat::kFp8Channel, DType::kE4M3, 1, s.outputs, s.inputs),
        x(s.rows, s.inputs, 0x1p-9f, s.padding),
        bias(random_floats(random, s.outputs)),
        gamma(random_floats(random, s.outputs)),
        h(random_matrix(random, DType::kBF16, s.rows, s.outputs, 2.0f, s.padding)),
        before(DType::kBF16, s.rows, s.outputs, s.padding),
        previous(s.rows, s.outputs, 0.3f),
        norm(s.rows, s.outputs, magnitude_of(gamma), s.padding),
        count({static_cast<std::int32_t>(s.live)}),
        overflowed({0}) {
    x.operand.fill_random(random);
    // Rows of very different sizes.
    for (std::int64_t r = 0; r < s.rows; ++r) {
      for (std::int64_t c = 0; c < s.outputs; ++c) h.set(r, c, h.get(r, c) * std::ldexp(1.0f, static_cast<int>(r % 7)));
      set_squares(previous, r, mean_square_of(h, r));
      set_squares(x, r, 1.0 + 0.01 * static_cast<double>(r % 50));
      norm.squares[r] = 0;
    }
    before.restore(h.snapshot());
  }

  static void set_squares(Pending& of, std::int64_t r, double mean_square) {
    const float root = root_power(static_cast<float>(mean_square));
    of.operand.scales[r] = root * norm_code_scale(of.gamma_magnitude);
    const double parts = mean_square / root / root * static_cast<double>(of.operand.codes.cols()) * kSquareParts;
    of.squares[r] = static_cast<std::uint64_t>(parts);
  }

  Extent rows() const { return {shape.rows, shape.live < 0 ? nullptr : count.get()}; }
  std::int64_t live() const { return shape.live < 0 ? shape.rows : shape.live; }
  double x_scale(std::int64_t r) const { return shape.pending ? x.row_scale(r) : x.operand.scales[r]; }

  LinearParams product() const {
    return {.x = shape.pending ? x.view() : x.operand.view(),
            .weight = weight.packed(),
            .bias = shape.bias ? bias.get() : nullptr,
            .residual = h.view(),
            .y = h.view(),
            .rows = rows()};
  }
  LinearNormParams params() const {
    return {.product = product(),
            .norm = {.x = h.view(),
                     .gamma = gamma.get(),
                     .width = shape.outputs,
                     .eps = kEps,
                     .gamma_magnitude = norm.gamma_magnitude,
                     .quantized = norm.view(),
                     .rows = rows()},
            .previous = previous.view(),
            .overflowed = overflowed.get()};
  }

  void expect_product(std::int64_t r, std::int64_t n) const {
    Dot sum;
    double magnitude = 0.0;
    for (std::int64_t k = 0; k < shape.inputs; ++k) {
      const double product = x_scale(r) * x.operand.codes.get(r, k) * weight.value(0, n, k);
      sum.sum += product;
      magnitude += std::abs(product);
    }
    sum.slack = dot_slack(DType::kE4M3, magnitude);
    const double want = sum.sum + (shape.bias ? bias[n] : 0.0) + before.get(r, n);
    sum.slack += 4 * rounding_error(DType::kF32, std::abs(want) + std::abs(sum.sum) + 4.0);
    expect_close(DType::kBF16, h.get(r, n), want, sum.slack, "h", r, n);
  }
};

constexpr Shape kShapes[] = {
    {130, -1, 256, 128, true, false},     {300, 131, 640, 224, false, true, 16},    {512, -1, 1920, 480, true, true},
    {1100, 1050, 272, 1824, false, true}, {512, -1, 1792, 1792, false, true},       {200, 0, 128, 128, true, true},
    {384, 200, 3600, 224, true, true},    {2500, 2111, 400, 160, false, false, 16},
};

// Of a row every so many outputs are compared, other ones in the next row.
constexpr std::int64_t kCheckedStep = 61;

void check_kernel(const DenseKernel& kernel, const Shape& s, int blocks) {
  SCOPED_TRACE(concat(kernel.name, ": ", name(s), " on ", blocks, " blocks"));
  Runner runner;
  Problem problem(runner.backend(), s);
  std::vector<GuardedBuffer*> outputs = problem.norm.buffers();
  outputs.push_back(&problem.h);
  outputs.push_back(&problem.overflowed);
  const LinearNormParams params = problem.params();
  runner.run(
      [&](OpContext& context) {
        if (!context.measuring) run_kernel(context.stream, params, kernel, blocks);
      },
      outputs);
  EXPECT_EQ(problem.overflowed[0], 0);
  for (std::int64_t r = 0; r < problem.live(); ++r) {
    expect_codes(problem.norm, problem.h, problem.gamma, r);
    ASSERT_EQ(problem.norm.root(r), root_power(static_cast<float>(problem.previous.mean_square(r)))) << "row " << r;
    for (std::int64_t n = r % kCheckedStep; n < s.outputs; n += kCheckedStep) problem.expect_product(r, n);
    if (testing::Test::HasFatalFailure()) return;
  }
}

TEST(LinearNorm, Kernels) {
  const std::vector<DenseKernel> kernels = dense_norm_kernels();
  if (kernels.empty()) GTEST_SKIP() << "this device has no tensor cores";
  for (const DenseKernel& kernel : kernels) {
    for (const Shape& s : kShapes) {
      for (const int blocks : {4, 132}) check_kernel(kernel, s, blocks);
      if (testing::Test::HasFailure()) return;
    }
  }
}

// The op takes the kernel where the norm is to be left pending, and does the same.
TEST(LinearNorm, IsOneKernelOfPendingNorms) {
  Runner runner;
  const bool fast = test_device() == TestDevice::kCuda;
  for (const std::int64_t inputs : {1792, 7168}) {
    Problem problem(runner.backend(), {at_most_on_simt(512, 8), -1, at_most_on_simt(inputs, 256), 1792, false, fast});
    LinearNormParams params = problem.params();
    const OpContext context{.backend = runner.backend(), .stream = runner.stream()};
    const LinearWeight& weight = *problem.weight.packed();
    EXPECT_EQ(runner.backend().reads_pending_norm(weight, 512), fast);
    EXPECT_FALSE(runner.backend().reads_pending_norm(weight, 4));
    EXPECT_FALSE(runner.backend().reads_pending_norm(weight, 16384));
    ASSERT_EQ(norm_comes_with(context, params), fast);
    params.norm.quantized.pending = {};
    EXPECT_FALSE(norm_comes_with(context, params));
    if (!fast) continue;
    runner.run_once([&](OpContext& c) { linear_norm(c, problem.params()); });
    for (std::int64_t r = 0; r < problem.live(); ++r) expect_codes(problem.norm, problem.h, problem.gamma, r);
  }
}

// Else it is linear() and rms_norm().
TEST(LinearNorm, IsItsPartsOtherwise) {
  Runner runner;
  Problem problem(runner.backend(), {40, 33, 256, 128, true, false, 16});
  LinearNormParams params = problem.params();
  params.norm.quantized.pending = {};
  params.previous = {};
  runner.run([&](OpContext& context) { linear_norm(context, params); },
             {&problem.h, &problem.norm.operand.codes, &problem.norm.operand.scales});
  const std::vector<unsigned char> h = problem.h.snapshot();
  const std::vector<unsigned char> codes = problem.norm.operand.codes.snapshot();
  problem.h.restore(problem.before.snapshot());
  problem.norm.operand.codes.poison();
  runner.run_once([&](OpContext& context) { linear(context, params.product); });
  runner.run_once([&](OpContext& context) { rms_norm(context, params.norm); });
  EXPECT_TRUE(h == problem.h.snapshot());
  EXPECT_TRUE(codes == problem.norm.operand.codes.snapshot());
}

// rms_norm itself can leave a norm pending: the same codes, and the factor that is missing from the scale.
TEST(LinearNorm, RmsNormLeavesItPending) {
  if (test_device() == TestDevice::kCpu) GTEST_SKIP() << "no product of this device reads it";
  Runner runner;
  Random random(6);
  const std::int64_t live = 21;
  const TestArray<std::int32_t> count({static_cast<std::int32_t>(live)});
  for (const std::int64_t cols : {128, 640, 1792, 2048 + 16}) {
    const TestMatrix x = random_matrix(random, DType::kBF16, 23, cols, 5.0f, 8);
    const TestArray<float> gamma = random_floats(random, cols);
    Pending pending(23, cols, magnitude_of(gamma), 16);
    TestOperand whole(ScaleKind::kPerRow, 23, cols, 16);
    RmsNormParams params{.x = x.view(),
                         .gamma = gamma.get(),
                         .width = cols,
                         .eps = kEps,
                         .gamma_magnitude = pending.gamma_magnitude,
                         .quantized = pending.view(),
                         .rows = {23, count.get()}};
    runner.run([&](OpContext& context) { rms_norm(context, params); }, pending.buffers());
    params.quantized = whole.view();
    runner.run_once([&](OpContext& context) { rms_norm(context, params); });
    for (std::int64_t r = 0; r < live; ++r) {
      expect_codes(pending, x, gamma, r);
      for (std::int64_t c = 0; c < cols; ++c) {
        ASSERT_EQ(pending.operand.codes.get(r, c), whole.codes.get(r, c)) << r << ", " << c;
      }
      ASSERT_NEAR(pending.row_scale(r), whole.scales[r], 2e-6 * whole.scales[r]);
    }
  }
}

// Rows with a NaN or an infinity, or whose squares overflow, have no scale.
TEST(LinearNorm, RmsNormLeavesNothingOfRowsThatAreNotFinite) {
  if (test_device() == TestDevice::kCpu) GTEST_SKIP() << "no product of this device reads it";
  Runner runner;
  Random random(7);
  TestMatrix x = random_matrix(random, DType::kBF16, 4, 256);
  x.set(0, 200, std::nanf(""));
  x.set(1, 7, -std::numeric_limits<float>::infinity());
  for (std::int64_t c = 0; c < 256; ++c) x.set(2, c, 1e20f);
  const TestArray<float> gamma = random_floats(random, 256);
  Pending pending(4, 256, magnitude_of(gamma));
  runner.run_once([&](OpContext& context) {
    rms_norm(context, {.x = x.view(),
                       .gamma = gamma.get(),
                       .width = 256,
                       .eps = kEps,
                       .gamma_magnitude = pending.gamma_magnitude,
                       .quantized = pending.view(),
                       .rows = {4}});
  });
  for (std::int64_t r = 0; r < 3; ++r) EXPECT_TRUE(std::isnan(pending.operand.scales[r])) << r;
  expect_codes(pending, x, gamma, 3);
}

// Every kernel that reads pending rows makes what it makes of the same codes with whole scales.
TEST(PendingNorm, IsReadByProducts) {
  const std::vector<DenseKernel> kernels = dense_pending_kernels();
  if (kernels.empty()) GTEST_SKIP() << "this device has no tensor cores";
  Runner runner;
  for (const DenseKernel& kernel : kernels) {
    for (const Shape& s : kShapes) {
      SCOPED_TRACE(concat(kernel.name, ": ", name(s)));
      Shape shape = s;
      shape.pending = true;
      Problem problem(runner.backend(), shape);
      LinearParams params = problem.product();
      params.residual = {};
      runner.run_once([&](OpContext& c) {
        if (!c.measuring) run_kernel(c.stream, params, kernel, 132);
      });
      for (std::int64_t r = 0; r < problem.live(); ++r) {
        for (std::int64_t n = r % kCheckedStep; n < s.outputs; n += kCheckedStep) {
          problem.before.set(r, n, 0.0f);
          problem.expect_product(r, n);
        }
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

TEST(PendingNorm, IsReadByProductsWithSwiglu) {
  const std::vector<DenseKernel> kernels = dense_swiglu_kernels();
  if (kernels.empty()) GTEST_SKIP() << "this device has no tensor cores";
  Runner runner;
  Random random(8);
  const std::int64_t rows = 300;
  const std::int64_t inputs = 640;
  const std::int64_t width = 352;
  const TestWeight weight(runner.backend(), random, WeightFormat::kFp8Channel, DType::kE4M3, 1, 2 * width, inputs);
  Pending x(rows, inputs, 0x1p-9f);
  x.operand.fill_random(random);
  TestOperand whole(ScaleKind::kPerRow, rows, inputs);
  whole.codes.restore(x.operand.codes.snapshot());
  for (std::int64_t r = 0; r < rows; ++r) {
    Problem::set_squares(x, r, 0.5 + 0.02 * static_cast<double>(r % 100));
    whole.scales[r] = static_cast<float>(x.row_scale(r));
  }
  TestMatrix gate_up(DType::kBF16, rows, 2 * width);
  TestMatrix hidden[2] = {{DType::kBF16, rows, width}, {DType::kBF16, rows, width}};
  for (const DenseKernel& kernel : kernels) {
    SCOPED_TRACE(kernel.name);
    for (int i = 0; i < 2; ++i) {
      const LinearSwigluParams params{.x = i == 0 ? x.view() : whole.view(),
                                      .weight = weight.packed(),
                                      .width = width,
                                      .gate_up = gate_up.view(),
                                      .y = hidden[i].view(),
                                      .rows = {rows}};
      runner.run_once([&](OpContext& c) {
        if (!c.measuring) run_kernel(c.stream, params, hidden[i].view(), kernel, 132);
      });
    }
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < width; ++c) {
        const double want = hidden[1].get(r, c);
        // gate and up may each fall to their other BF16 neighbour.
        ASSERT_NEAR(hidden[0].get(r, c), want, std::abs(want) * 0.03 + 1e-6) << r << ", " << c;
      }
    }
  }
}

// A row that outgrows its scale is reported; one that only comes close is not.
TEST(LinearNorm, ReportsRowsThatOutgrowTheirScale) {
  if (test_device() != TestDevice::kCuda) GTEST_SKIP() << "a kernel of tensor cores";
  Runner runner;
  for (const bool outgrows : {false, true}) {
    Problem problem(runner.backend(), {200, -1, 128, 128, false, false});
    problem.gamma[64] = 0.5f * problem.norm.gamma_magnitude;
    for (std::int64_t c = 0; c < 128; ++c) problem.h.set(77, c, 0.0f);
    const double largest = 448.0 * problem.previous.root(77) * norm_code_scale(problem.norm.gamma_magnitude);
    problem.h.set(77, 64, static_cast<float>(largest / problem.gamma[64] * (outgrows ? 1.05 : 0.95)));
    for (float& scale : problem.x.operand.scales) scale = 1e-6f;
    runner.run_once([&](OpContext& c) { linear_norm(c, problem.params()); });
    EXPECT_EQ(problem.overflowed[0], outgrows ? 1 : 0);
  }
}

TEST(LinearNorm, RefusesNormsOfSomethingElse) {
  Runner runner;
  Problem problem(runner.backend(), {4, -1, 128, 128, false, false});
  const auto refusal = [&](auto&& change) {
    LinearNormParams params = problem.params();
    params.norm.quantized.pending = {};
    change(params);
    return runner.refusal([&](OpContext& context) { linear_norm(context, params); });
  };
  EXPECT_EQ(refusal([](LinearNormParams&) {}), "");
  EXPECT_NE(refusal([&](LinearNormParams& p) { p.norm.x.data = problem.before.data(); }), "");
  EXPECT_NE(refusal([](LinearNormParams& p) { p.norm.rows.capacity = 3; }), "");
  EXPECT_NE(refusal([](LinearNormParams& p) { p.norm.groups = 2; }), "");
  EXPECT_NE(refusal([](LinearNormParams& p) { p.norm.quantized.values = p.product.x.values; }), "");
}

}  // namespace
}  // namespace onerec::test
