// Cross-attention of BF16 in rows at multiples of 16 bytes, against float64.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/cross_attention.h"
#include "support/attention_params.h"
#include "support/offsets.h"
#include "support/oracle.h"
#include "support/runner.h"

namespace onerec::test {

struct AttentionShape {
  std::vector<std::int64_t> rows;
  std::vector<std::int64_t> tokens;
  std::int64_t heads;
  std::int64_t kv_heads;
  std::int64_t head_dim;
  bool shared_kv = true;
  std::int64_t spare_rows = 0;
  std::int64_t spare_tokens = 0;
  std::int64_t max_rows = 0;  // of one request; 0: the largest number, and the spare ones
  std::int64_t every = 1;     // only every so many-th row and head is checked
};

struct AttentionProblem {
  AttentionShape shape;
  TestMatrix q, k, v, out;
  TestArray<std::int32_t> row_offsets, context_offsets;
  float scale;

  AttentionProblem(const AttentionShape& s, Random& random)
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
    CrossAttentionParams params = attention_params(*this, scale);
    params.max_request_rows = shape.max_rows > 0 ? shape.max_rows : largest_of(shape.rows) + shape.spare_rows;
    params.max_request_tokens = largest_of(shape.tokens) + shape.spare_tokens;
    return params;
  }

  // With a context that kernels must wait for, and with one that they may read early: the same bits.
  void run() {
    Runner runner;
    CrossAttentionParams p = params();
    const auto issue = [&](OpContext& context) { cross_attention(context, p); };
    runner.run(issue, {&out});
    const auto waited = out.snapshot();
    p.settled = true;
    out.poison();
    runner.run(issue, {&out});
    EXPECT_TRUE(out.snapshot() == waited) << "settled, heads of " << shape.head_dim;
  }
};

inline std::vector<float> row_of(const TestMatrix& matrix, std::int64_t r, std::int64_t first, std::int64_t count) {
  std::vector<float> row;
  for (std::int64_t c = first; c < first + count; ++c) row.push_back(matrix.get(r, c));
  return row;
}

// All queries of one request and head. The numerators may have been rounded beside any running maximum.
inline void check_attention_head(const AttentionProblem& x, std::int64_t b, std::int64_t h) {
  const AttentionShape& s = x.shape;
  const std::int64_t column = h / (s.heads / s.kv_heads) * s.head_dim;
  std::vector<std::vector<float>> keys, values;
  for (std::int64_t n = x.context_offsets[b]; n < x.context_offsets[b + 1]; ++n) {
    keys.push_back(row_of(x.k, n, column, s.head_dim));
    values.push_back(row_of(x.values(), n, column, s.head_dim));
  }
  const auto width = static_cast<std::size_t>(s.head_dim);
  for (std::int64_t r = x.row_offsets[b]; r < x.row_offsets[b + 1]; r += s.every) {
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

inline void expect_poison(const TestMatrix& matrix, std::int64_t r, std::int64_t first, std::int64_t last) {
  const unsigned char* row = matrix.data() + r * matrix.stride() * 2;
  for (std::int64_t i = first * 2; i < last * 2; ++i) ASSERT_EQ(row[i], kPoison) << "row " << r << ", byte " << i;
}

inline void check_attention(const AttentionProblem& x) {
  for (std::size_t b = 0; b < x.shape.rows.size(); ++b) {
    for (std::int64_t h = 0; h < x.shape.heads; h += x.shape.every)
      check_attention_head(x, static_cast<std::int64_t>(b), h);
  }
  const std::int64_t live = x.row_offsets[x.row_offsets.size() - 1];
  for (std::int64_t r = 0; r < x.out.rows(); ++r) {
    expect_poison(x.out, r, r < live ? x.out.cols() : 0, x.out.stride());
  }
}

inline void check_attention_shape(const AttentionShape& shape, Random& random) {
  AttentionProblem problem(shape, random);
  problem.run();
  check_attention(problem);
}

// The emulation has no tensor cores and is slow.
inline std::vector<std::int64_t> attention_head_dims() {
  if (test_device() == TestDevice::kSimt) return {64};
  return {64, 128};
}

}  // namespace onerec::test
