// Routing, gathering and combining of a mixture of experts.
#include "ops/moe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "support/oracle.h"
#include "support/runner.h"
#include "support/tensors.h"

namespace onerec::test {
namespace {

struct RouteProblem {
  TestMatrix logits;
  TestArray<float> bias, weights;
  TestArray<std::int32_t> selected, offsets, slots, sources, live;
  RouteParams p;

  RouteProblem(Random& random, std::int64_t rows, std::int64_t live_rows, std::int64_t experts, std::int64_t top_k)
      : logits(random_matrix(random, DType::kF32, rows, experts + 3, 2.0f, 2)),
        bias(random_floats(random, experts, 0.1f)),
        weights(rows * top_k),
        selected(rows * top_k),
        offsets(experts + 1),
        slots(rows * top_k),
        sources(rows * top_k),
        live({static_cast<std::int32_t>(live_rows)}),
        p{.logits = logits.view(),
          .bias = bias.get(),
          .experts = experts,
          .top_k = top_k,
          .selected = selected.get(),
          .weights = weights.get(),
          .offsets = offsets.get(),
          .slots = slots.get(),
          .sources = sources.get(),
          .rows = {rows, live.get()}} {}

  void run(int threads) {
    Runner runner(threads);
    runner.run([params = p](OpContext& context) { route(context, params); },
               {&weights, &selected, &offsets, &slots, &sources});
  }

  std::vector<double> scores(std::int64_t r) const {
    std::vector<double> s(static_cast<std::size_t>(p.experts));
    double total = 0, largest = -INFINITY;
    for (std::int64_t e = 0; e < p.experts; ++e) largest = std::max(largest, static_cast<double>(logits.get(r, e)));
    for (std::int64_t e = 0; e < p.experts; ++e) {
      const double z = logits.get(r, e);
      s[static_cast<std::size_t>(e)] =
          p.score == RouterScore::kSigmoid ? 1 / (1 + std::exp(-z)) : std::exp(z - largest);
      total += s[static_cast<std::size_t>(e)];
    }
    if (p.score == RouterScore::kSoftmax) {
      for (double& x : s) x /= total;
    }
    return s;
  }

  void check_row(std::int64_t r) const {
    const std::vector<double> s = scores(r);
    double sum = 0;
    std::vector<bool> seen(s.size());
    double previous = INFINITY, worst = INFINITY;
    for (std::int64_t j = 0; j < p.top_k; ++j) {
      const std::int32_t e = selected[r * p.top_k + j];
      ASSERT_TRUE(e >= 0 && e < p.experts && !seen[static_cast<std::size_t>(e)]);
      seen[static_cast<std::size_t>(e)] = true;
      const double ranking = s[static_cast<std::size_t>(e)] + bias[e];
      ASSERT_LE(ranking, previous + 1e-6);
      previous = worst = ranking;
      sum += s[static_cast<std::size_t>(e)];
    }
    for (std::size_t e = 0; e < s.size(); ++e) {
      if (seen[e]) continue;
      ASSERT_LE(s[e] + bias[static_cast<std::int64_t>(e)], worst + 1e-6);
    }
    for (std::int64_t j = 0; j < p.top_k; ++j) {
      const double score = s[static_cast<std::size_t>(selected[r * p.top_k + j])];
      const double want = (p.normalize == RouterNormalize::kSum ? score / (sum + 1e-20) : score) * p.scaling_factor;
      ASSERT_NEAR(weights[r * p.top_k + j], want, 3e-6 * want);
    }
  }

  // The expert-sorted order is the stable sort of the pairs.
  void check_order() const {
    std::vector<std::int32_t> pairs(static_cast<std::size_t>(live[0] * p.top_k));
    std::iota(pairs.begin(), pairs.end(), 0);
    std::stable_sort(pairs.begin(), pairs.end(), [&](auto a, auto b) { return selected[a] < selected[b]; });
    for (std::size_t i = 0; i < pairs.size(); ++i) {
      ASSERT_EQ(slots[pairs[i]], static_cast<std::int32_t>(i));
      ASSERT_EQ(sources[static_cast<std::int64_t>(i)], pairs[i] / p.top_k);
    }
    for (std::int64_t e = 0; e <= p.experts; ++e) {
      ASSERT_EQ(offsets[e], std::count_if(pairs.begin(), pairs.end(), [&](auto i) { return selected[i] < e; }));
    }
  }
};

TEST(Route, MatchesFloat64) {
  Random random(41);
  for (const RouterScore score : {RouterScore::kSigmoid, RouterScore::kSoftmax}) {
    for (const RouterNormalize normalize : {RouterNormalize::kNone, RouterNormalize::kSum}) {
      for (const auto& [rows, live, experts, top_k] :
           {std::array{0, 0, 4, 2}, {1, 1, 1, 1}, {5, 3, 8, 8}, {67, 64, 64, 6}, {512, 500, 160, 8}, {31, 31, 7, 3}}) {
        RouteProblem x(random, rows, live, experts, top_k);
        x.p.score = score;
        x.p.normalize = normalize;
        x.p.scaling_factor = 2.5f;
        x.run(2);
        for (std::int64_t r = 0; r < live; ++r) x.check_row(r);
        x.check_order();
        for (std::int64_t i = live * top_k; i < rows * top_k; ++i)
          ASSERT_EQ(x.selected[i], -1) << "behind the live rows";
      }
    }
  }
}

TEST(Route, BreaksTiesByIndexAndSurvivesNaN) {
  Random random(42);
  RouteProblem x(random, 3, 3, 9, 4);
  for (std::int64_t e = 0; e < 9; ++e) {
    x.bias[e] = 0.0f;
    x.logits.set(0, e, 1.0f);
    x.logits.set(1, e, e % 2 == 0 ? 1.0f : 2.0f);
    x.logits.set(2, e, e == 2 ? 0.5f : std::nanf(""));
  }
  x.run(1);
  const std::vector<std::int32_t> got(x.selected.begin(), x.selected.begin() + 8);
  EXPECT_EQ(got, (std::vector<std::int32_t>{0, 1, 2, 3, 1, 3, 5, 7}));
  std::vector<std::int32_t> broken(x.selected.begin() + 8, x.selected.end());
  std::sort(broken.begin(), broken.end());
  EXPECT_EQ(std::unique(broken.begin(), broken.end()), broken.end());
  x.check_order();
}

TEST(Route, DoesNotDependOnThreads) {
  Random random(43);
  RouteProblem x(random, 2000, 1999, 64, 6);
  x.run(1);
  const auto selected = x.selected.snapshot(), weights = x.weights.snapshot();
  for (auto* array : std::initializer_list<GuardedBuffer*>{&x.selected, &x.weights}) array->poison();
  x.run(2);
  EXPECT_TRUE(selected == x.selected.snapshot() && weights == x.weights.snapshot());
}

TEST(GatherRows, CopiesRowsAndScales) {
  Random random(44);
  const TestArray<std::int32_t> sources({4, 0, 4, 2, 1, 3, 3});
  const TestArray<std::int32_t> live({6});
  for (const ScaleKind kind : {ScaleKind::kNone, ScaleKind::kPerRow, ScaleKind::kPerBlock}) {
    TestOperand x(kind == ScaleKind::kNone ? ScaleKind::kPerRow : kind, 5, 300, 4, 3);
    TestOperand sorted(x.kind, 7, 300, 2, 1);
    x.fill_random(random);
    TestMatrix plain = random_matrix(random, DType::kBF16, 5, 300, 1.0f, 1);
    TestMatrix plain_sorted(DType::kBF16, 7, 300, 2);
    const bool quantized = kind != ScaleKind::kNone;
    const GatherRowsParams params{.x = quantized ? x.view() : Operand{.values = plain.view()},
                                  .sources = sources.get(),
                                  .sorted = quantized ? sorted.view() : Operand{.values = plain_sorted.view()},
                                  .sorted_rows = {7, live.get()}};
    Runner runner(2);
    runner.run([=](OpContext& context) { gather_rows(context, params); },
               {&sorted.codes, &sorted.scales, &plain_sorted});
    for (std::int64_t i = 0; i < 6; ++i) {
      if (!quantized) {
        ASSERT_EQ(plain_sorted.row_bytes(i), plain.row_bytes(sources[i]));
        continue;
      }
      ASSERT_EQ(sorted.codes.row_bytes(i), x.codes.row_bytes(sources[i]));
      for (std::int64_t c = 0; c < 300; ++c) ASSERT_EQ(sorted.scale(i, c), x.scale(sources[i], c));
    }
    for (const unsigned char byte : (quantized ? sorted.codes : plain_sorted).row_bytes(6)) ASSERT_EQ(byte, kPoison);
  }
}

TEST(MoeCombine, MatchesFloat64) {
  Random random(45);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const bool with_shared : {false, true}) {
      for (const auto& [rows, live, top_k, width] :
           {std::array{0, 0, 1, 8}, {5, 4, 1, 17}, {33, 33, 6, 257}, {90, 80, 2, 512}}) {
        const TestMatrix experts = random_matrix(random, dtype, rows * top_k, width, 1.0f, 1);
        const TestMatrix shared = random_matrix(random, dtype, rows, width, 1.0f, 2);
        TestMatrix h = random_matrix(random, dtype, rows, width, 1.0f, 3);
        TestArray<std::int32_t> slots(rows * top_k);
        std::iota(slots.begin(), slots.end(), 0);
        std::shuffle(slots.begin(), slots.end(), random);
        const TestArray<float> weights = random_floats(random, rows * top_k);
        const TestArray<std::int32_t> count({static_cast<std::int32_t>(live)});
        const MoeCombineParams params{.expert_out = experts.view(),
                                      .slots = slots.get(),
                                      .weights = weights.get(),
                                      .top_k = top_k,
                                      .shared = with_shared ? ConstMatrix(shared.view()) : ConstMatrix(),
                                      .h = h.view(),
                                      .rows = {rows, count.get()}};
        TestMatrix old(dtype, rows, width, 3);
        old.restore(h.snapshot());
        Runner runner(2);
        runner.run([=](OpContext& context) { moe_combine(context, params); }, {&h});
        for (std::int64_t r = 0; r < rows; ++r) {
          if (r >= live) {
            ASSERT_EQ(h.row_bytes(r), old.row_bytes(r));
            continue;
          }
          for (std::int64_t c = 0; c < width; ++c) {
            double sum = old.get(r, c) + (with_shared ? static_cast<double>(shared.get(r, c)) : 0.0);
            for (std::int64_t j = 0; j < top_k; ++j) {
              sum += static_cast<double>(weights[r * top_k + j]) * experts.get(slots[r * top_k + j], c);
            }
            expect_close(dtype, h.get(r, c), sum, 4e-6, "moe_combine", r, c);
          }
        }
      }
    }
  }
}

TEST(Moe, RefusesWrongParameters) {
  Random random(46);
  const RouteProblem x(random, 4, 4, 8, 2);
  Runner runner;
  const auto refusal = [&](const std::function<void(RouteParams&)>& change) {
    RouteParams params = x.p;
    change(params);
    return runner.refusal([&](OpContext& context) { route(context, params); });
  };
  EXPECT_EQ(refusal([](auto&) {}), "");
  EXPECT_EQ(refusal([](auto& p) { p.top_k = 9; }),
            "[route] got top_k = 9, want 1 to 8, the number of experts. Correct the configuration.");
  EXPECT_NE(refusal([](auto& p) { p.logits.cols = 7; }), "");
  EXPECT_NE(refusal([](auto& p) { p.bias = nullptr; }), "");
  EXPECT_NE(refusal([](auto& p) { p.logits.dtype = DType::kBF16; }), "");

  TestMatrix h(DType::kF32, 2, 4), experts(DType::kF32, 3, 4);
  EXPECT_NE(runner.refusal([&](OpContext& context) {
    moe_combine(context, {.expert_out = experts.view(), .top_k = 2, .h = h.view(), .rows = {2, nullptr}});
  }),
            "");
  EXPECT_NE(runner.refusal([&](OpContext& context) {
    gather_rows(context, {.x = {.values = h.view()},
                          .sources = x.sources.get(),
                          .sorted = {.values = experts.view(), .scale_kind = ScaleKind::kPerRow},
                          .sorted_rows = {2, nullptr}});
  }),
            "");
}

}  // namespace
}  // namespace onerec::test
