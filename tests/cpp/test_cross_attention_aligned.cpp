// Cross-attention of the shapes that tensor cores take: BF16, heads of 64 and 128, rows at multiples of 16 bytes, long
// and ragged contexts. Against float64.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <utility>

#include "ops/cross_attention.h"
#include "ops/quantize.h"
#include "support/offsets.h"
#include "support/oracle.h"
#include "support/runner.h"

namespace onerec::test {
namespace {

struct Shape {
  std::vector<std::int64_t> rows;
  std::vector<std::int64_t> tokens;
  std::int64_t heads;
  std::int64_t kv_heads;
  std::int64_t head_dim;
  bool shared_kv = true;
  std::int64_t spare_rows = 0;
  std::int64_t spare_tokens = 0;
  std::int64_t max_rows = 0;  // of one request; 0: the largest number, and the spare ones
};

struct Problem {
  Shape shape;
  TestMatrix q, k, v, out;
  TestArray<std::int32_t> row_offsets, context_offsets;
  float scale;

  Problem(const Shape& s, Random& random)
      : shape(s),
        q(random_matrix(random, DType::kBF16, total_of(s.rows) + s.spare_rows, s.heads * s.head_dim, 1.0f, 8)),
        k(DType::kBF16, total_of(s.tokens) + s.spare_tokens, s.kv_heads * s.head_dim, 16),
        v(DType::kBF16, total_of(s.tokens) + s.spare_tokens, s.kv_heads * s.head_dim, 8),
        out(DType::kBF16, total_of(s.rows) + s.spare_rows, s.heads * s.head_dim, 24),
        row_offsets(offsets_of(s.rows)),
        context_offsets(offsets_of(s.tokens)),
        scale(1.0f / std::sqrt(static_cast<float>(s.head_dim))) {
    // What lies behind the live tokens stays NaN.
    for (TestMatrix* matrix : {&k, &v}) {
      for (std::int64_t n = 0; n < total_of(s.tokens); ++n) {
        for (std::int64_t c = 0; c < matrix->cols(); ++c) matrix->set(n, c, normal(random));
      }
    }
  }

  const TestMatrix& values() const { return shape.shared_kv ? k : v; }

  CrossAttentionParams params() const {
    return {.q = q.view(),
            .k = k.view(),
            .v = values().view(),
            .context_offsets = context_offsets.get(),
            .row_offsets = row_offsets.get(),
            .out = out.view(),
            .batch = static_cast<std::int64_t>(shape.rows.size()),
            .rows_capacity = q.rows(),
            .tokens_capacity = k.rows(),
            .max_request_rows = shape.max_rows > 0 ? shape.max_rows : largest_of(shape.rows) + shape.spare_rows,
            .max_request_tokens = largest_of(shape.tokens) + shape.spare_tokens,
            .heads = shape.heads,
            .kv_heads = shape.kv_heads,
            .head_dim = shape.head_dim,
            .scale = scale};
  }

  void run() {
    Runner runner;
    runner.run([p = params()](OpContext& context) { cross_attention(context, p); }, {&out});
  }
};

std::vector<float> row_of(const TestMatrix& matrix, std::int64_t r, std::int64_t first, std::int64_t count) {
  std::vector<float> row;
  for (std::int64_t c = first; c < first + count; ++c) row.push_back(matrix.get(r, c));
  return row;
}

// All queries of one request and head. The numerators may have been rounded beside any running maximum.
void check_head(const Problem& x, std::int64_t b, std::int64_t h) {
  const Shape& s = x.shape;
  const std::int64_t column = h / (s.heads / s.kv_heads) * s.head_dim;
  std::vector<std::vector<float>> keys, values;
  for (std::int64_t n = x.context_offsets[b]; n < x.context_offsets[b + 1]; ++n) {
    keys.push_back(row_of(x.k, n, column, s.head_dim));
    values.push_back(row_of(x.values(), n, column, s.head_dim));
  }
  const auto width = static_cast<std::size_t>(s.head_dim);
  for (std::int64_t r = x.row_offsets[b]; r < x.row_offsets[b + 1]; ++r) {
    const std::vector<float> q = row_of(x.q, r, h * s.head_dim, s.head_dim);
    std::vector<double> scores;
    for (const std::vector<float>& key : keys) {
      double score = 0;
      for (std::size_t d = 0; d < width; ++d) score += static_cast<double>(q[d]) * key[d];
      scores.push_back(score * x.scale);
    }
    const double largest = scores.empty() ? 0.0 : *std::max_element(scores.begin(), scores.end());
    double total = 0;
    std::vector<double> sums(width), magnitudes(width), squares(width);
    for (std::size_t n = 0; n < scores.size(); ++n) {
      const double p = std::exp(scores[n] - largest);
      total += p;
      for (std::size_t d = 0; d < width; ++d) {
        sums[d] += p * values[n][d];
        magnitudes[d] += p * std::abs(values[n][d]);
        squares[d] += p * values[n][d] * (p * values[n][d]);
      }
    }
    for (std::size_t d = 0; d < width; ++d) {
      const double want = scores.empty() ? 0.0 : sums[d] / total;
      // The errors of the roundings add up, but hardly ever all to one side.
      const double roundings = 0x1p-8 * std::min(magnitudes[d], 4.0 * std::sqrt(squares[d]));
      const double slack = scores.empty() ? 0.0 : (roundings + 2e-5 * magnitudes[d]) / total;
      const std::int64_t c = h * s.head_dim + static_cast<std::int64_t>(d);
      expect_close(DType::kBF16, x.out.get(r, c), want, slack, "cross_attention", r, c);
    }
  }
}

void expect_poison(const TestMatrix& matrix, std::int64_t r, std::int64_t first, std::int64_t last) {
  const unsigned char* row = matrix.data() + r * matrix.stride() * 2;
  for (std::int64_t i = first * 2; i < last * 2; ++i) ASSERT_EQ(row[i], kPoison) << "row " << r << ", byte " << i;
}

void check(const Problem& x) {
  for (std::size_t b = 0; b < x.shape.rows.size(); ++b) {
    for (std::int64_t h = 0; h < x.shape.heads; ++h) check_head(x, static_cast<std::int64_t>(b), h);
  }
  const std::int64_t live = x.row_offsets[x.row_offsets.size() - 1];
  for (std::int64_t r = 0; r < x.out.rows(); ++r) {
    expect_poison(x.out, r, r < live ? x.out.cols() : 0, x.out.stride());
  }
}

void check_shape(const Shape& shape, Random& random) {
  Problem problem(shape, random);
  problem.run();
  check(problem);
}

// The emulation has no tensor cores and is slow.
std::vector<std::int64_t> head_dims() {
  if (test_device() == TestDevice::kSimt) return {64};
  return {64, 128};
}

TEST(CrossAttentionAligned, OneTile) {
  Random random(1);
  for (const std::int64_t head_dim : head_dims()) {
    for (const bool shared : {true, false}) {
      check_shape({{1}, {1}, 1, 1, head_dim, shared}, random);
      check_shape({{64}, {128}, 1, 1, head_dim, shared}, random);
      check_shape({{65}, {127}, 2, 2, head_dim, shared, 3, 40}, random);
    }
  }
}

TEST(CrossAttentionAligned, SeveralTiles) {
  Random random(2);
  for (const std::int64_t head_dim : head_dims()) {
    for (const bool shared : {true, false}) {
      // Up to four tiles there is one split.
      check_shape({{70}, {129}, 1, 1, head_dim, shared, 0, 5}, random);
      check_shape({{9, 130}, {512, 300}, 1, 1, head_dim, shared, 1, 0}, random);
    }
  }
}

TEST(CrossAttentionAligned, Splits) {
  Random random(3);
  for (const std::int64_t head_dim : head_dims()) {
    for (const bool shared : {true, false}) {
      check_shape({{3}, {1500}, 2, 2, head_dim, shared, 2, 7}, random);
      check_shape({{3, 5, 0, 2}, {20, 700, 30, 0}, 2, 1, head_dim, shared, 0, 300}, random);
    }
  }
}

// Where splits are added up the codes are made on the way, elsewhere behind it.
TEST(CrossAttentionAligned, CodesAreThoseOfTheRoundedOutput) {
  Random random(9);
  Runner runner;
  for (const std::int64_t head_dim : head_dims()) {
    const std::int64_t long_context = at_most_on_simt(1500, 200);
    for (const Shape& shape : {Shape{{3}, {long_context}, 2, 2, head_dim, true, 2, 7},
                               Shape{{3, 5, 0, 2}, {20, long_context, 30, 0}, 6, 2, head_dim, true},
                               Shape{{70}, {100}, 2, 1, head_dim, false, 1, 0},
                               Shape{{1, 0, 1}, {long_context, 5, 0}, 3, 3, head_dim, true}}) {
      Problem x(shape, random);
      x.run();
      const Extent rows{x.out.rows(), x.row_offsets.get() + shape.rows.size()};
      for (const std::int64_t padding : {8, 3}) {  // rows of codes that start at multiples of 8 bytes, and anywhere
        TestOperand want(ScaleKind::kPerRow, x.out.rows(), x.out.cols(), padding);
        TestOperand got(ScaleKind::kPerRow, x.out.rows(), x.out.cols(), padding);
        const QuantizeParams quantizer{.x = x.out.view(), .quantized = want.view(), .rows = rows};
        runner.run_once([&](OpContext& context) { quantize(context, quantizer); });
        TestMatrix scratch(DType::kBF16, x.out.rows(), x.out.cols(), 8);
        CrossAttentionParams params = x.params();
        params.out = scratch.view();
        params.quantized = got.view();
        runner.run([&](OpContext& context) { cross_attention(context, params); }, {&got.codes, &got.scales, &scratch});
        EXPECT_TRUE(got.codes.snapshot() == want.codes.snapshot()) << "heads of " << head_dim;
        EXPECT_TRUE(got.scales.snapshot() == want.scales.snapshot()) << "heads of " << head_dim;
      }
    }
  }
}

TEST(CrossAttentionAligned, GroupsShareTheirContext) {
  Random random(4);
  for (const std::int64_t head_dim : head_dims()) {
    check_shape({{1, 1, 1}, {200, 3, 130}, 14, 2, head_dim, true, 0, 9}, random);
    check_shape({{31, 12}, {140, 129}, 10, 2, head_dim, true, 5, 60}, random);
    check_shape({{13}, {257}, 5, 1, head_dim, false}, random);
    check_shape({{1, 3}, {140, 20}, 64, 1, head_dim}, random);
    check_shape({{2}, {20}, 65, 1, head_dim}, random);
  }
}

// More tiles of queries than multiprocessors, so that blocks take several: of both warpgroups and of one, with and
// without tokens, and none at all.
TEST(CrossAttentionAligned, BlocksTakeSeveralTilesOfQueries) {
  Random random(8);
  const std::int64_t requests = at_most_on_simt(200, 6);
  for (const std::int64_t head_dim : {64, 128}) {
    for (const bool shared : {true, false}) {
      Shape shape{.rows = {}, .tokens = {}, .heads = 2, .kv_heads = 2, .head_dim = head_dim, .shared_kv = shared};
      for (std::int64_t b = 0; b < requests; ++b) {
        const bool large = uniform(random, 0, 40) == 0;
        shape.rows.push_back(large ? uniform(random, 60, 200) : uniform(random, 0, 3));
        shape.tokens.push_back(uniform(random, 0, 5) == 0 ? 0 : uniform(random, 1, large ? 300 : 30));
      }
      check_shape(shape, random);
    }
  }
  Shape grouped{.rows = {}, .tokens = {}, .heads = 14, .kv_heads = 2, .head_dim = 64};
  for (std::int64_t b = 0; b < requests; ++b) {
    grouped.rows.push_back(uniform(random, 0, 12) == 0 ? uniform(random, 8, 30) : uniform(random, 0, 2));
    grouped.tokens.push_back(uniform(random, 0, 20) == 0 ? 200 : uniform(random, 0, 5));
  }
  check_shape(grouped, random);
}

TEST(CrossAttentionAligned, RaggedRequests) {
  Random random(5);
  for (int i = 0; i < at_most_on_simt(12, 2); ++i) {
    Shape shape;
    for (std::int64_t b = uniform(random, 1, 5); b > 0; --b) {
      shape.rows.push_back(uniform(random, 0, 90));
      shape.tokens.push_back(uniform(random, 0, 420));
    }
    shape.kv_heads = uniform(random, 1, 2);
    shape.heads = shape.kv_heads * uniform(random, 1, 3);
    shape.head_dim = uniform(random, 1, 2) * 64;
    shape.shared_kv = uniform(random, 0, 1) == 0;
    shape.spare_rows = uniform(random, 0, 70);
    shape.spare_tokens = uniform(random, 0, 700);
    check_shape(shape, random);
  }
}

// The next request's tokens share the last tile of a request, whose rows must not see them.
TEST(CrossAttentionAligned, KeepsNonFiniteValuesInTheirRequest) {
  Random random(6);
  for (const std::int64_t head_dim : head_dims()) {
    for (const float bad : {std::nanf(""), INFINITY, -INFINITY}) {
      Problem x({{20, 20, 20}, {150, 50, 140}, 2, 2, head_dim}, random);
      x.k.set(150 + 3, head_dim + 5, bad);
      x.run();
      for (std::int64_t r = 0; r < 60; ++r) {
        for (std::int64_t c = 0; c < 2 * head_dim; ++c) {
          const bool touched = r / 20 == 1 && c == head_dim + 5;
          const bool may_be = r / 20 == 1 && c >= head_dim;
          const bool finite = std::isfinite(x.out.get(r, c));
          ASSERT_TRUE(finite ? !touched : may_be) << r << ", " << c;
        }
      }
    }
  }
}

// Kernels may differ where no request has more than one row.
Shape one_row(std::vector<std::int64_t> rows, std::vector<std::int64_t> tokens, std::int64_t heads,
              std::int64_t kv_heads, std::int64_t head_dim) {
  return {.rows = std::move(rows),
          .tokens = std::move(tokens),
          .heads = heads,
          .kv_heads = kv_heads,
          .head_dim = head_dim,
          .max_rows = 1};
}

constexpr std::array kOneRowHeadDims = {std::int64_t{64}, std::int64_t{128}, std::int64_t{40}};

TEST(CrossAttentionAligned, OneRowOfOneRequest) {
  Random random(10);
  for (const std::int64_t head_dim : kOneRowHeadDims) {
    for (const std::int64_t tokens : {0, 1, 63, 512, 3000}) {
      if (tokens == 3000 && head_dim == 40) continue;  // no different from 512
      const std::int64_t heads = tokens == 512 ? at_most_on_simt(head_dim == 64 ? 10 : 14, 2) : tokens == 3000 ? 1 : 3;
      for (const bool shared : {true, false}) {
        Shape shape = one_row({1}, {tokens}, heads, heads, head_dim);
        shape.shared_kv = shared;
        check_shape(shape, random);
        shape.spare_rows = 3;
        shape.spare_tokens = 300;
        check_shape(shape, random);
      }
    }
  }
}

TEST(CrossAttentionAligned, OneRowOfEveryRequest) {
  Random random(11);
  for (const std::int64_t head_dim : kOneRowHeadDims) {
    for (const std::int64_t requests : {std::int64_t{3}, at_most_on_simt(32, 5), at_most_on_simt(90, 8)}) {
      for (const bool shared : {true, false}) {
        const std::int64_t heads = requests == 32 ? 3 : at_most_on_simt(11, 2);
        Shape shape = one_row({}, {}, heads, heads, head_dim);
        for (std::int64_t b = 0; b < requests; ++b) {
          shape.rows.push_back(uniform(random, 0, 5) == 0 ? 0 : 1);
          shape.tokens.push_back(uniform(random, 0, b % 4 == 0 && b < 32 ? 300 : 20));
        }
        shape.shared_kv = shared;
        shape.spare_rows = uniform(random, 0, 4);
        shape.spare_tokens = uniform(random, 0, 900);
        check_shape(shape, random);
      }
    }
  }
}

TEST(CrossAttentionAligned, OneRowOfGroups) {
  Random random(12);
  for (const std::int64_t head_dim : kOneRowHeadDims) {
    for (const std::int64_t group : {2, 7, 16}) {
      check_shape(one_row({1}, {at_most_on_simt(1000, 300)}, group, 1, head_dim), random);
      check_shape(one_row({1, 0, 1}, {70, 3, 200}, group * 2, 2, head_dim), random);
    }
  }
  // So much to read again for every head that other kernels may be quicker.
  const std::vector<std::int64_t> tokens(static_cast<std::size_t>(at_most_on_simt(40, 2)), at_most_on_simt(500, 20));
  check_shape(one_row(std::vector<std::int64_t>(tokens.size(), 1), tokens, 14, 2, 128), random);
}

TEST(CrossAttentionAligned, OneRowKeepsNonFiniteValuesInItsRequest) {
  Random random(13);
  for (const std::int64_t head_dim : kOneRowHeadDims) {
    for (const float bad : {std::nanf(""), INFINITY, -INFINITY}) {
      for (const std::int64_t spare_tokens : {0, 600}) {  // few and many splits
        Shape shape = one_row({1, 1, 1}, {150, 50, 140}, 2, 2, head_dim);
        shape.spare_tokens = spare_tokens;
        Problem x(shape, random);
        x.k.set(150 + 3, head_dim + 5, bad);
        x.run();
        for (std::int64_t r = 0; r < 3; ++r) {
          for (std::int64_t c = 0; c < 2 * head_dim; ++c) {
            const bool touched = r == 1 && c == head_dim + 5;
            const bool may_be = r == 1 && c >= head_dim;
            const bool finite = std::isfinite(x.out.get(r, c));
            ASSERT_TRUE(finite ? !touched : may_be) << r << ", " << c;
          }
        }
      }
    }
  }
}

TEST(CrossAttentionAligned, OneRowFollowsTheLargestScore) {
  Random random(14);
  for (const float slope : {0.05f, -0.05f, 2.0f, -2.0f}) {
    for (const std::int64_t spare_tokens : {0, 600}) {
      Shape shape = one_row({1}, {500}, 1, 1, 64);
      shape.shared_kv = false;
      shape.spare_tokens = spare_tokens;
      Problem x(shape, random);
      x.q.set(0, 0, 8.0f);
      for (std::int64_t n = 0; n < 500; ++n) x.k.set(n, 0, slope * static_cast<float>(n));
      x.run();
      check(x);
    }
  }
}

// Scores that grow or fall along the context, so that the running maximum changes with every tile.
TEST(CrossAttentionAligned, FollowsTheLargestScore) {
  Random random(7);
  for (const float slope : {0.05f, -0.05f, 2.0f, -2.0f}) {
    for (const std::int64_t spare_tokens : {0, 600}) {
      Problem x({{6}, {500}, 1, 1, 64, false, 0, spare_tokens}, random);
      for (std::int64_t r = 0; r < 6; ++r) x.q.set(r, 0, 8.0f);
      for (std::int64_t n = 0; n < 500; ++n) x.k.set(n, 0, slope * static_cast<float>(n));
      x.run();
      check(x);
    }
  }
}

}  // namespace
}  // namespace onerec::test
