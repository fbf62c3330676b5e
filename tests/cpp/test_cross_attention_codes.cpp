// Cross-attention to E4M3 codes of a context against float64, one query at a time.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "ops/cross_attention.h"
#include "ops/quantize.h"
#include "support/context_codes.h"
#include "support/offsets.h"
#include "support/oracle.h"
#include "support/runner.h"

namespace onerec::test {
namespace {

using Counts = std::vector<std::int64_t>;

struct Shape {
  Counts rows;
  Counts tokens;
  std::int64_t heads;
  std::int64_t kv_heads;
  std::int64_t head_dim;
  std::int64_t spare = 0;  // capacity behind the live rows and tokens
};

struct Problem {
  Shape shape;
  TestMatrix q, out;
  TestArray<std::int32_t> row_offsets, context_offsets;
  TestContextCodes codes;

  Problem(const Shape& s, Random& random)
      : shape(s),
        q(random_matrix(random, DType::kBF16, total_of(s.rows) + s.spare, s.heads * s.head_dim, 1.0f, 8)),
        out(DType::kBF16, total_of(s.rows) + s.spare, s.heads * s.head_dim, 24),
        row_offsets(offsets_of(s.rows)),
        context_offsets(offsets_of(s.tokens)),
        codes(total_of(s.tokens) + s.spare, static_cast<std::int64_t>(s.tokens.size()), s.kv_heads * s.head_dim) {
    codes.fill_random(random, context_offsets, 100.0f);
    codes.key_scale = 0.013f;
    codes.value_scale = 0.007f;
  }

  CrossAttentionParams params() const {
    return {.q = q.view(),
            .codes = codes.view(),
            .context_offsets = context_offsets.get(),
            .row_offsets = row_offsets.get(),
            .out = out.view(),
            .batch = static_cast<std::int64_t>(shape.rows.size()),
            .rows_capacity = q.rows(),
            .tokens_capacity = codes.keys.rows(),
            .max_request_rows = largest_of(shape.rows) + shape.spare,
            .max_request_tokens = largest_of(shape.tokens) + shape.spare,
            .heads = shape.heads,
            .kv_heads = shape.kv_heads,
            .head_dim = shape.head_dim,
            .scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim))};
  }

  void run(Runner& runner) {
    runner.run([p = params()](OpContext& context) { cross_attention(context, p); }, {&out});
  }
};

double coded_numerator(double p) { return from_e4m3(to_e4m3(static_cast<float>(256.0 * p))) / 256.0; }

// One query of request b against its context.
void check_query(const Problem& x, std::int64_t b, std::int64_t r, std::int64_t h) {
  const Shape& s = x.shape;
  const std::int64_t first = x.context_offsets[b];
  const std::int64_t tokens = x.context_offsets[b + 1] - first;
  const std::int64_t column = h / (s.heads / s.kv_heads) * s.head_dim;
  float amax = 0.0f;
  for (std::int64_t d = 0; d < s.head_dim; ++d) amax = std::max(amax, std::abs(x.q.get(r, h * s.head_dim + d)));
  const float query_scale = std::max(amax / 448.0f, 1e-12f);
  std::vector<double> query;
  for (std::int64_t d = 0; d < s.head_dim; ++d) {
    query.push_back(from_e4m3(to_e4m3(x.q.get(r, h * s.head_dim + d) * (1.0f / query_scale))));
  }
  const double scale =
      static_cast<double>(1.0f / std::sqrt(static_cast<float>(s.head_dim))) * query_scale * x.codes.key_scale;

  std::vector<double> score(static_cast<std::size_t>(tokens));
  double largest = -INFINITY, off = 0;
  for (std::int64_t n = 0; n < tokens; ++n) {
    double dot = 0, magnitude = 0;
    for (std::int64_t d = 0; d < s.head_dim; ++d) {
      const double product = query[static_cast<std::size_t>(d)] * x.codes.keys.get(first + n, column + d);
      dot += product;
      magnitude += std::abs(product);
    }
    score[static_cast<std::size_t>(n)] = scale * dot;
    largest = std::max(largest, scale * dot);
    off = std::max(off, scale * dot_slack(DType::kE4M3, magnitude));
  }
  // How far p may be off, of itself: by the scores, its own and the largest, and by the exponential.
  const double doubt = 2.0 * off + 1e-5;
  for (std::int64_t d = 0; d < s.head_dim; ++d) {
    double sum = 0, total = 0, slack = 0, squares = 0, plain = 0;
    for (std::int64_t n = 0; n < tokens; ++n) {
      const double p = std::exp(score[static_cast<std::size_t>(n)] - largest);
      const double value = x.codes.value_scale * x.codes.value(first, b, n, column + d);
      total += p;
      sum += coded_numerator(p) * value;
      plain += p * value;
      slack += std::abs(value) * doubt * p;
      // A code this close to a rounding boundary may fall to either side.
      slack += std::abs(value) * (coded_numerator(p * (1 + doubt)) - coded_numerator(p * (1 - doubt)));
      // One rounding to E4M3 beside another maximum, of numbers that are smaller by up to 2^3.
      const double rounding = std::max(0x1p-4 * p, 0x1p-15);
      squares += rounding * rounding * value * value;
    }
    if (test_device() == TestDevice::kCuda) {
      // The errors of the roundings add up, but hardly ever all to one side.
      sum = plain;
      slack += 4.0 * std::sqrt(squares);
    }
    const std::int64_t c = h * s.head_dim + d;
    const double want = tokens == 0 ? 0.0 : sum / total;
    expect_close(DType::kBF16, x.out.get(r, c), want, tokens == 0 ? 0.0 : slack / total, "cross_attention", r, c);
  }
}

void check(const Problem& x) {
  for (std::size_t b = 0; b < x.shape.rows.size(); ++b) {
    const auto i = static_cast<std::int64_t>(b);
    for (std::int64_t r = x.row_offsets[i]; r < x.row_offsets[i + 1]; ++r) {
      for (std::int64_t h = 0; h < x.shape.heads; ++h) check_query(x, i, r, h);
    }
  }
  // Rows behind the live ones stay poisoned.
  for (std::int64_t r = x.row_offsets[x.row_offsets.size() - 1]; r < x.out.rows(); ++r) {
    for (const unsigned char byte : x.out.row_bytes(r)) ASSERT_EQ(byte, kPoison);
  }
}

bool attends(Runner& runner, const Shape& s) { return attends_to_codes(runner, s.heads, s.kv_heads, s.head_dim); }

#define ONEREC_NEEDS_CODES_OF(runner, shape) \
  if (!attends(runner, shape)) GTEST_SKIP() << "this backend does not attend to codes for such heads"

TEST(CrossAttentionCodes, MatchesFloat64) {
  Random random(31);
  Runner runner(2);
  const std::vector<Shape> shapes = {{{1}, {1}, 1, 1, 64},
                                     {{}, {}, 2, 1, 64},
                                     {{0, 3}, {5, 0}, 2, 1, 64},
                                     {{3, 0, 7}, {0, 4, 31}, 4, 4, 64, 9},
                                     {{5, 64}, {17, 30}, 4, 1, 128, 2},
                                     {{13}, {16}, 4, 2, 128},
                                     {{2, 1, 1}, {129, 63, 65}, 8, 2, 64, 1},
                                     {{at_most_on_simt(131, 33)}, {257}, 2, 2, 64},
                                     {{40, 41}, {127, 128}, 8, 1, 64},
                                     {{3, 9}, {at_most_on_simt(1500, 200), 20}, 2, 1, 128, 40},
                                     {{5, 64}, {17, 30}, 4, 1, 48, 2},
                                     {{2, 1, 1}, {129, 63, 65}, 6, 3, 8, 1},
                                     {{7}, {33}, 2, 2, 37, 3}};
  int checked = 0;
  for (const Shape& shape : shapes) {
    if (!attends(runner, shape)) continue;
    ++checked;
    Problem problem(shape, random);
    problem.run(runner);
    check(problem);
    if (HasFatalFailure()) return;
  }
  if (checked == 0) GTEST_SKIP() << "this backend does not attend to codes";
}

TEST(CrossAttentionCodes, RowsDoNotDependOnThreadsCapacitiesOrBatch) {
  Random random(32);
  const Shape shape = {{at_most_on_simt(70, 20), 9, at_most_on_simt(150, 17)}, {45, 80, 33}, 4, 2, 64};
  Runner one_thread(1);
  ONEREC_NEEDS_CODES_OF(one_thread, shape);
  Problem together(shape, random);
  together.run(one_thread);
  const auto want = together.out.snapshot();
  for (const int threads : {2, 3, 16}) {
    if (test_device() == TestDevice::kSimt) break;  // it has one thread
    Runner runner(threads);
    together.out.poison();
    together.run(runner);
    EXPECT_TRUE(want == together.out.snapshot()) << threads << " threads";
  }
  for (std::int64_t b = 0; b < 3; ++b) {
    Random unused(0);
    const auto i = static_cast<std::size_t>(b);
    Problem one({{shape.rows[i]}, {shape.tokens[i]}, 4, 2, 64, 40}, unused);
    for (std::int64_t r = 0; r < shape.rows[i]; ++r) {
      for (std::int64_t c = 0; c < one.q.cols(); ++c) one.q.set(r, c, together.q.get(together.row_offsets[b] + r, c));
    }
    const std::int64_t first = together.context_offsets[b];
    for (std::int64_t n = 0; n < shape.tokens[i]; ++n) {
      for (std::int64_t c = 0; c < one.codes.keys.cols(); ++c) {
        one.codes.keys.set(n, c, together.codes.keys.get(first + n, c));
        one.codes.values.set(c, value_column(0, n), together.codes.value(first, b, n, c));
      }
    }
    one.run(one_thread);
    for (std::int64_t r = 0; r < shape.rows[i]; ++r) {
      if (test_device() == TestDevice::kCuda) break;  // its parts of a context depend on capacities
      ASSERT_TRUE(one.out.row_bytes(r) == together.out.row_bytes(together.row_offsets[b] + r)) << "request " << b;
    }
    check(one);
  }
}

// p = exp(-0.69140625) = 0.50087, and 256 p = 128.22 rounds to 128: the numerator 1 * -0.5 + p * 1 vanishes.
TEST(CrossAttentionCodes, RoundsTheNumeratorsButNotTheDenominator) {
  Random random(33);
  Runner runner(1);
  const Shape shape = {{1}, {2}, 1, 1, 64};
  ONEREC_NEEDS_CODES_OF(runner, shape);
  Problem x(shape, random);
  for (std::int64_t d = 0; d < 64; ++d) {
    x.q.set(0, d, d == 0 ? 448.0f : 0.0f);
    for (std::int64_t n = 0; n < 2; ++n) {
      x.codes.keys.set(n, d, n == 1 && d == 0 ? -1.0f : 0.0f);
      x.codes.values.set(d, value_column(0, n), n == 0 ? -0.5f : 1.0f);
    }
    x.codes.values.set(d, value_column(0, 2), d == 5 ? 448.0f : 0.0f);  // of no token
  }
  x.codes.key_scale = 8.0f * 0.69140625f / 448.0f;
  x.codes.value_scale = 1.0f;
  x.run(runner);
  for (std::int64_t d = 0; d < 64; ++d) EXPECT_NEAR(x.out.get(0, d), 0.0, 1e-6) << d;
  for (std::int64_t d = 0; d < 64; ++d) x.codes.values.set(d, value_column(0, 0), 0.0f);
  x.run(runner);
  const double p = std::exp(-0.69140625);
  for (std::int64_t d = 0; d < 64; ++d) EXPECT_EQ(x.out.get(0, d), to_float(to_bfloat16(0.5f / (1.0f + p))));
}

// 200 tokens of p = 1.4 * 2^-17: 256 p is 1.4 of E4M3's smallest number, and counts as 1 of it. On a GPU 128 p may be
// what is coded.
TEST(CrossAttentionCodes, SmallNumeratorsAreMultiplesOfTheSmallestCode) {
  Random random(39);
  Runner runner(1);
  const Shape shape = {{1}, {201}, 1, 1, 64};
  ONEREC_NEEDS_CODES_OF(runner, shape);
  Problem x(shape, random);
  const double p = test_device() == TestDevice::kCuda ? 1.4 * 0x1p-16 : 1.4 * 0x1p-17;
  for (std::int64_t d = 0; d < 64; ++d) {
    x.q.set(0, d, d == 0 ? 448.0f : 0.0f);
    for (std::int64_t n = 0; n < 201; ++n) {
      x.codes.keys.set(n, d, n > 0 && d == 0 ? -1.0f : 0.0f);
      x.codes.values.set(d, value_column(0, n), n > 0 ? 448.0f : 0.0f);
    }
  }
  x.codes.key_scale = static_cast<float>(-8.0 * std::log(p) / 448.0);
  x.codes.value_scale = 1.0f;
  x.run(runner);
  const double plain = 448.0 * 200.0 * p / (1.0 + 200.0 * p);
  const double coded = plain / 1.4;
  for (std::int64_t d = 0; d < 64; ++d) {
    // Relative to a smaller number than the largest the steps are finer.
    EXPECT_GE(x.out.get(0, d), coded * (1 - 0x1p-7));
    EXPECT_LE(x.out.get(0, d), (test_device() == TestDevice::kCuda ? plain : coded) * (1 + 0x1p-7));
  }
}

TEST(CrossAttentionCodes, QueriesOfAnySize) {
  Random random(34);
  Runner runner(2);
  const Shape shape = {{6}, {40}, 2, 1, 64};
  ONEREC_NEEDS_CODES_OF(runner, shape);
  Problem x(shape, random);
  // Each row and head has a scale of its own; a head of zeros attends to all tokens alike.
  for (std::int64_t r = 0; r < 6; ++r) {
    for (std::int64_t c = 0; c < 128; ++c) {
      x.q.set(r, c, x.q.get(r, c) * std::ldexp(1.0f, static_cast<int>(4 * r + c / 64 * 3 - 14)));
      if (r == 2) x.q.set(r, c, 0.0f);
    }
  }
  x.run(runner);
  check(x);
}

TEST(CrossAttentionCodes, KeepsNonFiniteValuesInTheirRequest) {
  Runner runner(2);
  const Shape shape = {{20, 20}, {18, 50}, 2, 2, 64};
  ONEREC_NEEDS_CODES_OF(runner, shape);
  for (const bool in_query : {true, false}) {
    Random random(35);
    Problem x(shape, random);
    if (in_query) {
      for (std::int64_t r = 0; r < 20; ++r) x.q.set(r, 0, std::nanf(""));
    } else {
      x.codes.keys.set(3, 0, std::nanf(""));
    }
    x.run(runner);
    for (std::int64_t r = 0; r < 20; ++r) {
      EXPECT_FALSE(std::isfinite(x.out.get(r, 0)));
      for (std::int64_t c = 0; c < 128; ++c) EXPECT_TRUE(std::isfinite(x.out.get(20 + r, c)));
    }
  }
}

TEST(CrossAttentionCodes, MakesTheCodesOfItsOutput) {
  Random random(36);
  Runner runner(2);
  const Shape shape = {{3, 5, 0, 2}, {20, at_most_on_simt(700, 150), 30, 0}, 4, 1, 64, 7};
  ONEREC_NEEDS_CODES_OF(runner, shape);
  Problem x(shape, random);
  x.run(runner);
  TestOperand want(ScaleKind::kPerRow, x.out.rows(), x.out.cols());
  TestOperand got(ScaleKind::kPerRow, x.out.rows(), x.out.cols());
  const Extent rows{x.out.rows(), x.row_offsets.get() + 4};
  runner.run_once(
      [&](OpContext& context) { quantize(context, {.x = x.out.view(), .quantized = want.view(), .rows = rows}); });
  CrossAttentionParams params = x.params();
  params.quantized = got.view();
  runner.run([&](OpContext& context) { cross_attention(context, params); }, {&got.codes, &got.scales, &x.out});
  EXPECT_TRUE(want.codes.snapshot() == got.codes.snapshot());
  EXPECT_TRUE(want.scales.snapshot() == got.scales.snapshot());
}

TEST(CrossAttentionCodes, RefusesWrongParameters) {
  Random random(37);
  Runner runner;
  const Shape shape = {{4}, {4}, 4, 2, 64};
  ONEREC_NEEDS_CODES_OF(runner, shape);
  const Problem x(shape, random);
  const TestMatrix wide = random_matrix(random, DType::kF32, 4, 256);
  const auto refusal = [&](const std::function<void(CrossAttentionParams&)>& change) {
    CrossAttentionParams params = x.params();
    change(params);
    return runner.refusal([&](OpContext& context) { cross_attention(context, params); });
  };
  EXPECT_EQ(refusal([](auto&) {}), "");
  EXPECT_EQ(refusal([&](auto& p) { p.q = wide.view(); }),
            "[cross_attention] got q of float32, want bfloat16. Convert it, or correct the view.");
  EXPECT_EQ(refusal([](auto& p) { p.codes.key_scale = -1.0f; }),
            "[cross_attention] got codes.key_scale = -1, want a positive number. Correct the scale.");
  EXPECT_EQ(refusal([](auto& p) { p.codes.values.stride = 72; }),
            "[cross_attention] got codes.values with stride 72, want a multiple of 16. Pad the rows.");
  EXPECT_NE(refusal([](auto& p) { p.codes.keys.dtype = DType::kU8; }), "");
  EXPECT_NE(refusal([](auto& p) { p.codes.values.cols = 32; }), "");
  EXPECT_NE(refusal([](auto& p) { p.codes.values.data = nullptr; }), "");
  EXPECT_NE(refusal([](auto& p) { p.tokens_capacity = 5; }), "");
}

// A backend without such kernels says so before anything runs.
TEST(CrossAttentionCodes, AreRefusedWhereThereAreNoKernels) {
  Random random(38);
  Runner runner;
  const Shape shape = {{4}, {4}, 4, 2, 64};
  if (attends(runner, shape)) GTEST_SKIP() << "this backend has them";
  const Problem x(shape, random);
  const std::string refusal = runner.refusal([&](OpContext& context) { cross_attention(context, x.params()); });
  EXPECT_NE(refusal.find("kv_cache_dtype='auto'"), std::string::npos) << refusal;
}

}  // namespace
}  // namespace onerec::test
