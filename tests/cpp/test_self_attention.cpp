// Self-attention through ancestry against float64.
#include "ops/self_attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <tuple>

#include "ops/quantize.h"
#include "support/oracle.h"
#include "support/runner.h"
#include "support/tensors.h"

namespace onerec::test {
namespace {

struct Problem {
  int step;
  std::int64_t heads, kv_heads, head_dim;
  std::vector<TestMatrix> qkv;
  std::vector<TestArray<std::int32_t>> ancestry;
  TestArray<std::int32_t> live;
  TestMatrix out;

  Problem(Random& random, DType dtype, int step_, std::int64_t heads_, std::int64_t kv_heads_, std::int64_t head_dim_,
          std::int64_t rows, std::int64_t live_rows, std::int64_t padding = 3)
      : step(step_),
        heads(heads_),
        kv_heads(kv_heads_),
        head_dim(head_dim_),
        live({static_cast<std::int32_t>(live_rows)}),
        out(dtype, rows, heads * head_dim, padding) {
    for (int s = 0; s <= step; ++s) {
      const std::int64_t step_rows = s == step ? rows : uniform(random, 1, 9);
      qkv.push_back(random_matrix(random, dtype, step_rows, (heads + 2 * kv_heads) * head_dim, 1.5f, s * padding));
      if (s == step) continue;
      ancestry.emplace_back(rows);
      for (std::int64_t r = 0; r < live_rows; ++r) {
        ancestry.back()[r] = static_cast<std::int32_t>(uniform(random, 0, step_rows - 1));
      }
    }
  }

  SelfAttentionParams params() const {
    SelfAttentionParams p{.step = step,
                          .out = out.view(),
                          .heads = heads,
                          .kv_heads = kv_heads,
                          .head_dim = head_dim,
                          .scale = 0.3f,
                          .rows = {out.rows(), live.get()}};
    for (std::size_t s = 0; s < qkv.size(); ++s) p.qkv[s] = qkv[s].view();
    for (std::size_t s = 0; s < ancestry.size(); ++s) p.ancestry[s] = ancestry[s].get();
    return p;
  }

  // With earlier steps that kernels must wait for, and with such as they may read early: the same bits.
  void run(int threads) {
    Runner runner(threads);
    SelfAttentionParams p = params();
    const auto issue = [&](OpContext& context) { self_attention(context, p); };
    runner.run(issue, {&out});
    const auto waited = out.snapshot();
    p.settled = true;
    out.poison();
    runner.run(issue, {&out});
    EXPECT_TRUE(out.snapshot() == waited) << "settled, step " << step;
  }

  std::int64_t row_at(std::size_t s, std::int64_t r) const { return s < ancestry.size() ? ancestry[s][r] : r; }

  void check_head(std::int64_t r, std::int64_t h) const {
    const std::int64_t key = (heads + h / (heads / kv_heads)) * head_dim;
    std::vector<double> p(qkv.size());
    double largest = -INFINITY;
    for (std::size_t s = 0; s < qkv.size(); ++s) {
      for (std::int64_t d = 0; d < head_dim; ++d) {
        p[s] += static_cast<double>(qkv.back().get(r, h * head_dim + d)) * qkv[s].get(row_at(s, r), key + d);
      }
      p[s] *= 0.3f;
      largest = std::max(largest, p[s]);
    }
    double total = 0;
    for (double& x : p) total += x = std::exp(x - largest);
    for (std::int64_t d = 0; d < head_dim; ++d) {
      double sum = 0, magnitude = 0;
      for (std::size_t s = 0; s < qkv.size(); ++s) {
        const double value = qkv[s].get(row_at(s, r), key + kv_heads * head_dim + d);
        sum += p[s] * value;
        magnitude += p[s] * std::abs(value);
      }
      expect_close(out.dtype(), out.get(r, h * head_dim + d), sum / total, 2e-5 * magnitude / total, "self_attention",
                   r, h * head_dim + d);
    }
  }
};

TEST(SelfAttention, MatchesFloat64) {
  Random random(21);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const int step : {0, 1, 2, 7}) {
      for (const auto& [heads, kv_heads] : {std::pair{1, 1}, {4, 4}, {6, 2}, {4, 1}}) {
        // Rows that start anywhere, and at multiples of 16 bytes.
        for (const auto& [head_dim, padding] :
             {std::pair{16, 3}, {64, 3}, {200, 3}, {5, 3}, {16, 8}, {48, 8}, {64, 8}, {128, 8}, {200, 8}, {328, 8}}) {
          const std::int64_t rows = uniform(random, 1, at_most_on_simt(37, 9));
          const std::int64_t live = uniform(random, 0, rows);
          Problem x(random, dtype, step, heads, kv_heads, head_dim, rows, live, padding);
          x.run(2);
          for (std::int64_t r = 0; r < live; ++r) {
            for (std::int64_t h = 0; h < heads; ++h) x.check_head(r, h);
          }
          for (std::int64_t r = live; r < rows; ++r) {
            for (const unsigned char byte : x.out.row_bytes(r)) ASSERT_EQ(byte, kPoison);
          }
        }
      }
    }
  }
}

// The same bits as the op that stores and the quantiser behind it.
TEST(SelfAttention, QuantisesTheRoundedOutput) {
  Random random(24);
  Runner runner;
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const int step : {0, 2, 5}) {
      for (const auto& [heads, kv_heads, head_dim, padding] :
           {std::tuple{4, 4, 64, 8}, {6, 2, 48, 8}, {14, 14, 128, 0}, {40, 8, 128, 0}, {3, 1, 200, 8}, {5, 5, 20, 3}}) {
        const std::int64_t rows = uniform(random, 1, at_most_on_simt(37, 5));
        const std::int64_t live = uniform(random, 0, rows);
        Problem x(random, dtype, step, heads, kv_heads, head_dim, rows, live, padding);
        TestOperand got(ScaleKind::kPerRow, rows, heads * head_dim, padding);
        TestOperand want(ScaleKind::kPerRow, rows, heads * head_dim, padding);
        SelfAttentionParams params = x.params();
        runner.run_once([&](OpContext& context) { self_attention(context, params); });
        const QuantizeParams quantizer{.x = x.out.view(), .quantized = want.view(), .rows = params.rows};
        runner.run_once([&](OpContext& context) { quantize(context, quantizer); });
        params.out = {};
        params.quantized = got.view();
        for (const bool settled : {false, true}) {
          params.settled = settled;
          got.codes.poison();
          got.scales.poison();
          runner.run([&](OpContext& context) { self_attention(context, params); }, {&got.codes, &got.scales});
          EXPECT_TRUE(got.codes.snapshot() == want.codes.snapshot()) << heads << " heads of " << head_dim;
          EXPECT_TRUE(got.scales.snapshot() == want.scales.snapshot()) << heads << " heads of " << head_dim;
        }
      }
    }
  }
}

// A GPU has another kernel for many rows: each has the bits that it has among few, also its codes.
TEST(SelfAttention, ManyRows) {
  Random random(25);
  Runner runner;
  const std::int64_t rows = test_device() == TestDevice::kCuda ? 3000 : 60;
  const std::int64_t few = test_device() == TestDevice::kCuda ? 300 : 40;
  for (const int step : {1, 2, 3}) {
    for (const auto& [heads, kv_heads, head_dim] :
         {std::tuple{14, 14, 128}, {11, 11, 128}, {10, 10, 64}, {6, 2, 64}, {16, 4, 128}, {3, 3, 48}, {20, 20, 128}}) {
      const std::int64_t live = rows - 7;
      Problem x(random, DType::kBF16, step, heads, kv_heads, head_dim, rows, live, 8);
      SelfAttentionParams params = x.params();
      runner.run([&](OpContext& context) { self_attention(context, params); }, {&x.out});
      for (std::int64_t r = live; r < rows; ++r) {
        for (const unsigned char byte : x.out.row_bytes(r)) ASSERT_EQ(byte, kPoison);
      }
      TestMatrix out(DType::kBF16, few, heads * head_dim, 8);
      params.out = out.view();
      params.rows = {few, nullptr};
      runner.run_once([&](OpContext& context) { self_attention(context, params); });
      TestOperand want(ScaleKind::kPerRow, few, heads * head_dim, 8);
      TestOperand got(ScaleKind::kPerRow, rows, heads * head_dim, 8);
      params.out = {};
      params.quantized = want.view();
      runner.run_once([&](OpContext& context) { self_attention(context, params); });
      params.quantized = got.view();
      params.rows = x.params().rows;
      runner.run([&](OpContext& context) { self_attention(context, params); }, {&got.codes, &got.scales});
      for (std::int64_t r = 0; r < few; ++r) {
        ASSERT_TRUE(x.out.row_bytes(r) == out.row_bytes(r)) << r << ", " << heads << " heads of " << head_dim;
        ASSERT_TRUE(got.codes.row_bytes(r) == want.codes.row_bytes(r)) << r;
        ASSERT_EQ(got.scale(r, 0), want.scale(r, 0)) << r;
      }
    }
  }
}

TEST(SelfAttention, DoesNotDependOnThreads) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    Random random(22);
    const std::int64_t rows = at_most_on_simt(301, 50);
    Problem x(random, dtype, 2, 8, 8, 64, rows, rows - 1);
    x.run(1);
    const auto want = x.out.snapshot();
    x.out.poison();
    x.run(2);
    EXPECT_TRUE(want == x.out.snapshot());
  }
}

TEST(SelfAttention, RefusesWrongParameters) {
  Random random(23);
  const Problem x(random, DType::kF32, 1, 4, 2, 16, 3, 3);
  Runner runner;
  const auto refusal = [&](const std::function<void(SelfAttentionParams&)>& change) {
    SelfAttentionParams params = x.params();
    change(params);
    return runner.refusal([&](OpContext& context) { self_attention(context, params); });
  };
  EXPECT_EQ(refusal([](auto&) {}), "");
  EXPECT_EQ(refusal([](auto& p) { p.step = 8; }), "[self_attention] got step 8, want 0 to 7. Shorten the semantic id.");
  EXPECT_NE(refusal([](auto& p) { p.heads = 3; }), "");
  EXPECT_EQ(refusal([](auto& p) { p.out.data = nullptr; }),
            "[self_attention] got neither out nor quantized, want one of them. Pass its address.");
  TestOperand coded(ScaleKind::kPerRow, 3, 64);
  EXPECT_EQ(refusal([&](auto& p) { p.quantized = coded.view(); }),
            "[self_attention] got both out and quantized, want one of them. Leave the other's data null.");
  EXPECT_NE(refusal([&](auto& p) {
              p.out = {};
              p.quantized = coded.view();
              p.quantized.scale_kind = ScaleKind::kPerBlock;
            }),
            "");
  EXPECT_NE(refusal([](auto& p) { p.ancestry[0] = nullptr; }), "");
  EXPECT_NE(refusal([](auto& p) { p.qkv[0].dtype = DType::kBF16; }), "");
  EXPECT_NE(refusal([](auto& p) { p.rows.capacity = 4; }), "");
}

}  // namespace
}  // namespace onerec::test
