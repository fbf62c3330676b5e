// Cross-attention against float64, one query at a time.
#include "ops/cross_attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "support/attention_params.h"
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
  DType dtype;
  bool shared_kv = true;
  std::int64_t spare = 0;  // capacity behind the live rows and tokens
};

struct Problem {
  Shape shape;
  TestMatrix q, k, v, out;
  TestArray<std::int32_t> row_offsets, context_offsets;

  Problem(const Shape& s, Random& random)
      : shape(s),
        q(random_matrix(random, s.dtype, total_of(s.rows) + s.spare, s.heads * s.head_dim, 1.0f, 3)),
        k(random_matrix(random, s.dtype, total_of(s.tokens) + s.spare, s.kv_heads * s.head_dim, 1.0f, 5)),
        v(random_matrix(random, s.dtype, total_of(s.tokens) + s.spare, s.kv_heads * s.head_dim, 1.0f, 2)),
        out(s.dtype, total_of(s.rows) + s.spare, s.heads * s.head_dim, 1),
        row_offsets(offsets_of(s.rows)),
        context_offsets(offsets_of(s.tokens)) {}

  const TestMatrix& values() const { return shape.shared_kv ? k : v; }

  CrossAttentionParams params() const {
    CrossAttentionParams params = attention_params(*this, 1.0f / std::sqrt(static_cast<float>(shape.head_dim)));
    params.max_request_rows = largest_of(shape.rows) + shape.spare;
    params.max_request_tokens = largest_of(shape.tokens) + shape.spare;
    return params;
  }

  void run(int threads) {
    Runner runner(threads);
    runner.run([p = params()](OpContext& context) { cross_attention(context, p); }, {&out});
  }
};

double round_numerator(DType dtype, double p) {
  return dtype == DType::kBF16 ? to_float(to_bfloat16(static_cast<float>(p))) : p;
}

// One query of request b against its context.
void check_query(const Problem& x, std::size_t b, std::int64_t r, std::int64_t h) {
  const Shape& s = x.shape;
  const std::int64_t first = x.context_offsets[static_cast<std::int64_t>(b)];
  const std::int64_t group = h / (s.heads / s.kv_heads);
  const double scale = 1.0f / std::sqrt(static_cast<float>(s.head_dim));
  std::vector<double> score(static_cast<std::size_t>(s.tokens[b]));
  double largest = -INFINITY;
  for (std::size_t n = 0; n < score.size(); ++n) {
    for (std::int64_t d = 0; d < s.head_dim; ++d) {
      score[n] += static_cast<double>(x.q.get(r, h * s.head_dim + d)) *
                  x.k.get(first + static_cast<std::int64_t>(n), group * s.head_dim + d);
    }
    score[n] *= scale;
    largest = std::max(largest, score[n]);
  }
  for (std::int64_t d = 0; d < s.head_dim; ++d) {
    double sum = 0, total = 0, magnitude = 0, flips = 0;
    for (std::size_t n = 0; n < score.size(); ++n) {
      const double p = std::exp(score[n] - largest);
      const double rounded = round_numerator(s.dtype, p);
      const double value = x.values().get(first + static_cast<std::int64_t>(n), group * s.head_dim + d);
      sum += rounded * value;
      magnitude += p * std::abs(value);
      total += p;
      // A p this close to a rounding boundary may fall to either side.
      flips += std::abs(value) * (round_numerator(s.dtype, p * (1 + 1e-5)) - round_numerator(s.dtype, p * (1 - 1e-5)));
    }
    const double want = score.empty() ? 0.0 : sum / total;
    const double slack = score.empty() ? 0.0 : (1e-5 * magnitude + flips) / total;
    expect_close(s.dtype, x.out.get(r, h * s.head_dim + d), want, slack, "cross_attention", r, h * s.head_dim + d);
  }
}

void check(const Problem& x) {
  for (std::size_t b = 0; b < x.shape.rows.size(); ++b) {
    const auto i = static_cast<std::int64_t>(b);
    for (std::int64_t r = x.row_offsets[i]; r < x.row_offsets[i + 1]; ++r) {
      for (std::int64_t h = 0; h < x.shape.heads; ++h) check_query(x, b, r, h);
    }
  }
  // Rows behind the live ones stay poisoned.
  for (std::int64_t r = x.row_offsets[x.row_offsets.size() - 1]; r < x.out.rows(); ++r) {
    for (const unsigned char byte : x.out.row_bytes(r)) ASSERT_EQ(byte, kPoison);
  }
}

std::vector<Shape> shapes() {
  std::vector<Shape> list;
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    list.push_back({{1}, {1}, 1, 1, 16, dtype});
    list.push_back({{}, {}, 2, 1, 16, dtype});
    list.push_back({{0, 3}, {5, 0}, 2, 1, 16, dtype});
    list.push_back({{3, 0, 7}, {0, 4, 31}, 4, 4, 64, dtype, true, 9});
    list.push_back({{5, 64}, {17, 30}, 4, 1, 48, dtype, false, 2});
    list.push_back({{13}, {16}, 4, 2, 128, dtype, false});
    list.push_back({{2, 1, 1}, {129, 63, 65}, 6, 3, 8, dtype, true, 1});
    list.push_back({{at_most_on_simt(131, 33)}, {257}, 3, 3, 64, dtype, false});
    list.push_back({{40, 41}, {127, 128}, 8, 1, 16, dtype, true});
    list.push_back({{7}, {33}, 2, 2, 37, dtype, false, 3});
  }
  return list;
}

TEST(CrossAttention, MatchesFloat64) {
  Random random(11);
  for (const Shape& shape : shapes()) {
    Problem problem(shape, random);
    problem.run(2);
    check(problem);
  }
}

TEST(CrossAttention, MatchesFloat64OnRandomShapes) {
  Random random(12);
  for (std::int64_t i = at_most_on_simt(40, 10); i > 0; --i) {
    Shape shape;
    for (std::int64_t b = uniform(random, 1, 4); b > 0; --b) {
      shape.rows.push_back(uniform(random, 0, 20));
      shape.tokens.push_back(uniform(random, 0, 140));
    }
    shape.kv_heads = uniform(random, 1, 3);
    shape.heads = shape.kv_heads * uniform(random, 1, 4);
    shape.head_dim = std::array{16, 48, 64, 128}[static_cast<std::size_t>(uniform(random, 0, 3))];
    shape.dtype = i % 2 == 0 ? DType::kF32 : DType::kBF16;
    shape.shared_kv = uniform(random, 0, 1) == 0;
    shape.spare = uniform(random, 0, 30);
    Problem problem(shape, random);
    problem.run(static_cast<int>(uniform(random, 1, 4)));
    check(problem);
  }
}

TEST(CrossAttention, RowsDoNotDependOnThreadsCapacitiesOrBatch) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    Random random(13);
    const Shape shape = {{at_most_on_simt(70, 20), 9, at_most_on_simt(150, 17)}, {45, 80, 33}, 4, 2, 64, dtype};
    Problem together(shape, random);
    together.run(1);
    const auto want = together.out.snapshot();
    for (const int threads : {2, 3, 16}) {
      if (test_device() == TestDevice::kSimt) break;  // it has one thread
      together.out.poison();
      together.run(threads);
      EXPECT_TRUE(want == together.out.snapshot()) << threads << " threads";
    }
    for (std::size_t b = 0; b < shape.rows.size(); ++b) {
      Random unused(0);
      Shape alone = shape;
      alone.rows = {shape.rows[b]};
      alone.tokens = {shape.tokens[b]};
      alone.spare = 40;
      Problem one(alone, unused);
      const auto i = static_cast<std::int64_t>(b);
      const auto copy = [&](const TestMatrix& from, std::int64_t begin, TestMatrix& to, std::int64_t rows) {
        for (std::int64_t r = 0; r < rows; ++r) {
          for (std::int64_t c = 0; c < from.cols(); ++c) to.set(r, c, from.get(begin + r, c));
        }
      };
      copy(together.q, together.row_offsets[i], one.q, shape.rows[b]);
      copy(together.k, together.context_offsets[i], one.k, shape.tokens[b]);
      one.run(2);
      for (std::int64_t r = 0; r < shape.rows[b]; ++r) {
        ASSERT_TRUE(one.out.row_bytes(r) == together.out.row_bytes(together.row_offsets[i] + r)) << "request " << b;
      }
    }
  }
}

// p = exp(-0.69140625) = 0.50087 rounds to 0.5 in BF16: the numerator 1 * -0.5 + p * 1 vanishes, with FP32 it does not.
TEST(CrossAttention, RoundsTheNumeratorsButNotTheDenominator) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    Random random(14);
    Problem x({{1}, {2}, 1, 1, 16, dtype, false}, random);
    for (std::int64_t d = 0; d < 16; ++d) {
      x.q.set(0, d, d == 0 ? 1.0f : 0.0f);
      for (std::int64_t n = 0; n < 2; ++n) {
        x.k.set(n, d, n == 1 && d == 0 ? -4.0f * 0.69140625f : 0.0f);
        x.v.set(n, d, n == 0 ? -0.5f : 1.0f);
      }
    }
    x.run(1);
    const double p = std::exp(-0.69140625);
    const double want = dtype == DType::kBF16 ? 0.0 : (p - 0.5) / (1.0 + p);
    for (std::int64_t d = 0; d < 16; ++d) EXPECT_NEAR(x.out.get(0, d), want, 1e-7);
  }
}

TEST(CrossAttention, KeepsNonFiniteValuesInTheirRequest) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const float bad : {std::nanf(""), INFINITY}) {
      Random random(15);
      Problem x({{20, 20}, {18, 50}, 2, 2, 16, dtype}, random);
      x.k.set(3, 0, bad);
      x.run(2);
      for (std::int64_t r = 0; r < 20; ++r) {
        EXPECT_FALSE(std::isfinite(x.out.get(r, 0)));
        for (std::int64_t c = 0; c < 32; ++c) EXPECT_TRUE(std::isfinite(x.out.get(20 + r, c)));
      }
    }
  }
}

TEST(CrossAttention, RefusesWrongParameters) {
  Random random(16);
  const Problem x({{4}, {4}, 4, 2, 16, DType::kF32}, random);
  Runner runner;
  const auto refusal = [&](const std::function<void(CrossAttentionParams&)>& change) {
    CrossAttentionParams params = x.params();
    change(params);
    return runner.refusal([&](OpContext& context) { cross_attention(context, params); });
  };
  EXPECT_EQ(refusal([](auto&) {}), "");
  EXPECT_EQ(refusal([](auto& p) { p.kv_heads = 3; }),
            "[cross_attention] got 4 heads over 3 kv_heads, want a multiple. Correct the head counts.");
  EXPECT_NE(refusal([](auto& p) { p.head_dim = 32; }), "");
  EXPECT_NE(refusal([](auto& p) { p.k.dtype = DType::kBF16; }), "");
  EXPECT_NE(refusal([](auto& p) { p.row_offsets = nullptr; }), "");
  EXPECT_NE(refusal([](auto& p) { p.rows_capacity = 5; }), "");
  EXPECT_NE(refusal([&](auto& p) { p.out = x.q.view(); }), "");
  const TestOperand codes(ScaleKind::kPerRow, 4, 4 * 16);
  EXPECT_EQ(refusal([&](auto& p) { p.quantized = codes.view(); }), "");
  EXPECT_NE(refusal([&](auto& p) {
              p.quantized = codes.view();
              p.quantized.scale_kind = ScaleKind::kPerBlock;
            }),
            "");
  EXPECT_NE(refusal([&](auto& p) {
              p.quantized = codes.view();
              p.quantized.values.cols = 32;
            }),
            "");
}

}  // namespace
}  // namespace onerec::test
