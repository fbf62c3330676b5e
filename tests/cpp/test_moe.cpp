// Routing, gathering and combining of a mixture of experts.
#include "ops/moe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "core/error.h"
#include "ops/linear_route.h"
#include "support/oracle.h"
#include "support/runner.h"
#include "support/tensors.h"
#include "support/weights.h"

namespace onerec::test {
namespace {

struct RouteProblem {
  TestMatrix logits;
  TestArray<float> bias, weights;
  TestArray<std::int32_t> selected, offsets, slots, sources, live;
  RouteParams p;

  RouteProblem(Random& random, std::int64_t rows, std::int64_t live_rows, std::int64_t experts, std::int64_t top_k,
               std::int64_t alignment = 1)
      : logits(random_matrix(random, DType::kF32, rows, experts + 3, 2.0f, 2)),
        bias(random_floats(random, experts, 0.1f)),
        weights(rows * top_k),
        selected(rows * top_k),
        offsets(experts + 1),
        slots(rows * top_k),
        sources(sorted_capacity(rows, experts, top_k, alignment)),
        live({static_cast<std::int32_t>(live_rows)}),
        p{.logits = logits.view(),
          .bias = bias.get(),
          .experts = experts,
          .top_k = top_k,
          .alignment = alignment,
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

  // `slack`: how far scores may be off, and weights relative to their size.
  void check_row(std::int64_t r, double slack = 1e-6) const {
    const std::vector<double> s = scores(r);
    double sum = 0;
    std::vector<bool> seen(s.size());
    double previous = INFINITY, worst = INFINITY;
    for (std::int64_t j = 0; j < p.top_k; ++j) {
      const std::int32_t e = selected[r * p.top_k + j];
      ASSERT_TRUE(e >= 0 && e < p.experts && !seen[static_cast<std::size_t>(e)]);
      seen[static_cast<std::size_t>(e)] = true;
      const double ranking = s[static_cast<std::size_t>(e)] + bias[e];
      ASSERT_LE(ranking, previous + slack);
      previous = worst = ranking;
      sum += s[static_cast<std::size_t>(e)];
    }
    for (std::size_t e = 0; e < s.size(); ++e) {
      if (seen[e]) continue;
      ASSERT_LE(s[e] + bias[static_cast<std::int64_t>(e)], worst + slack);
    }
    for (std::int64_t j = 0; j < p.top_k; ++j) {
      const double score = s[static_cast<std::size_t>(selected[r * p.top_k + j])];
      const double want = (p.normalize == RouterNormalize::kSum ? score / (sum + 1e-20) : score) * p.scaling_factor;
      ASSERT_NEAR(weights[r * p.top_k + j], want, 3 * slack * want);
    }
  }

  // The pairs of an expert stand in their order, padding behind them.
  void check_order() const {
    std::vector<std::vector<std::int32_t>> pairs(static_cast<std::size_t>(p.experts));
    for (std::int32_t i = 0; i < live[0] * p.top_k; ++i) pairs[static_cast<std::size_t>(selected[i])].push_back(i);
    std::int32_t next = 0;
    for (std::int64_t e = 0; e < p.experts; ++e) {
      ASSERT_EQ(offsets[e], next);
      for (const std::int32_t i : pairs[static_cast<std::size_t>(e)]) {
        ASSERT_EQ(slots[i], next);
        ASSERT_EQ(sources[next], i / p.top_k);
        ++next;
      }
      for (; next % p.alignment != 0; ++next) ASSERT_EQ(sources[next], -1) << "padding of expert " << e;
    }
    ASSERT_EQ(offsets[p.experts], next);
    ASSERT_LE(next, sources.size());
    for (std::int64_t i = live[0] * p.top_k; i < slots.size(); ++i) {
      ASSERT_EQ(selected[i], -1) << "behind the live rows";
      ASSERT_EQ(slots[i], -1) << "behind the live rows";
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
      }
    }
  }
}

TEST(Route, AlignsTheExperts) {
  Random random(47);
  for (const int alignment : {1, 16, 64, 128, 24}) {
    for (const auto& [rows, live, experts, top_k] :
         {std::array{0, 0, 4, 2}, {9, 0, 4, 2}, {1, 1, 53, 3}, {70, 64, 8, 8}, {300, 290, 53, 3}, {1500, 1400, 7, 2}}) {
      SCOPED_TRACE(concat(rows, " rows, ", experts, " experts, alignment ", alignment));
      RouteProblem x(random, rows, live, experts, top_k, alignment);
      x.run(2);
      for (std::int64_t r = 0; r < live; ++r) x.check_row(r);
      x.check_order();
      if (HasFatalFailure()) return;
    }
  }
}

TEST(Route, ManyRowsAndManyExperts) {
  Random random(50);
  for (const auto& [rows, live, experts, top_k] :
       {std::array{5000, 4700, 53, 3}, {64, 63, 200, 8}, {90, 90, 500, 12}}) {
    RouteProblem x(random, rows, live, experts, top_k, 64);
    x.run(2);
    for (std::int64_t r = 0; r < live; ++r) x.check_row(r);
    x.check_order();
  }
}

// All rows choose the same experts: the others are empty, the first and the last one among them.
TEST(Route, LeavesExpertsEmpty) {
  Random random(48);
  for (const int alignment : {1, 16, 64, 128}) {
    for (const std::int32_t rows : {1, 64, 129, 700}) {
      RouteProblem x(random, rows, rows, 40, 2, alignment);
      x.bias[17] = 20.0f;
      x.bias[33] = 10.0f;
      x.run(2);
      x.check_order();
      const std::int32_t padded = (rows + alignment - 1) / alignment * alignment;
      ASSERT_EQ(x.offsets[17], 0);
      ASSERT_EQ(x.offsets[18], padded);
      ASSERT_EQ(x.offsets[33], padded);
      ASSERT_EQ(x.offsets[40], 2 * padded);
    }
  }
}

// linear() and route(), at once where the backend can: experts chosen by logits that differ in the order of their sums.
struct RouterProblem {
  RouteProblem route;
  Runner runner;
  TestWeight weight;
  TestMatrix x, y;

  RouterProblem(Random& random, std::int64_t rows, std::int64_t live, std::int64_t experts, std::int64_t inputs)
      : route(random, rows, live, experts, 3, 64),
        weight(runner.backend(), random, WeightFormat::kDense, DType::kBF16, 1, experts + 3, inputs),
        x(random_matrix(random, DType::kBF16, rows, inputs, 1.0f, 8)),
        y(DType::kF32, rows, experts + 3) {}

  LinearRouteParams params(const Matrix& logits) const {
    LinearRouteParams both{
        .product = {.x = {.values = x.view()}, .weight = weight.packed(), .y = logits, .rows = route.p.rows},
        .route = route.p};
    both.route.logits = logits;
    return both;
  }
};

TEST(LinearRoute, ChoosesByTheProduct) {
  Random random(53);
  for (const auto& [rows, live, experts, inputs] : {std::array{65, 65, 53, 96},
                                                    {130, 100, 61, 32},
                                                    {512, 500, 53, 1408},
                                                    {66, 66, 7, 1600},
                                                    {2048, 1, 33, 64},
                                                    {90, 0, 53, 64},
                                                    {20, 17, 53, 64},
                                                    {70, 70, 80, 64},
                                                    {3000, 2900, 53, 64}}) {
    if (test_device() == TestDevice::kSimt && rows * inputs > 200 * 1000) continue;  // slow
    SCOPED_TRACE(concat(rows, " rows, ", live, " live, ", experts, " experts, ", inputs, " inputs"));
    RouterProblem problem(random, rows, live, experts, inputs);
    RouteProblem& route = problem.route;
    const LinearRouteParams apart = problem.params(route.logits.view());
    problem.runner.run_once([&](OpContext& context) { linear(context, apart.product); });
    const LinearRouteParams params = problem.params(problem.y.view());
    problem.runner.run([&](OpContext& context) { linear_route(context, params); },
                       {&route.weights, &route.selected, &route.offsets, &route.slots, &route.sources});
    for (std::int64_t r = 0; r < live; ++r) route.check_row(r, 2e-5);
    route.check_order();
    if (HasFatalFailure()) return;
  }
}

TEST(LinearRoute, FewExpertsAndRowsAreDoneAtOnce) {
  Random random(54);
  const auto fuses = [&](std::int64_t rows, std::int64_t experts, std::int64_t inputs) {
    RouterProblem problem(random, rows, rows, experts, inputs);
    return problem.runner.backend().fuses_linear_route(problem.params(problem.y.view()));
  };
  const bool can = test_device() != TestDevice::kCpu;
  EXPECT_EQ(fuses(512, 53, 1408), can);
  EXPECT_EQ(fuses(65, 61, 32), can);
  EXPECT_FALSE(fuses(64, 53, 64)) << "one block routes them";
  EXPECT_FALSE(fuses(2049, 53, 64)) << "all blocks read all weights";
  EXPECT_FALSE(fuses(512, 62, 64)) << "65 outputs";
  EXPECT_FALSE(fuses(512, 53, 48));
}

TEST(LinearRoute, RefusesOtherLogitsAndOtherRows) {
  Random random(55);
  RouterProblem problem(random, 70, 70, 5, 32);
  const auto refusal = [&](const auto& change) {
    LinearRouteParams params = problem.params(problem.y.view());
    change(params);
    return problem.runner.refusal([&](OpContext& context) { linear_route(context, params); });
  };
  EXPECT_EQ(refusal([](LinearRouteParams&) {}), "");
  EXPECT_NE(
      refusal([&](LinearRouteParams& p) { p.route.logits = problem.route.logits.view(); }).find("not the product"),
      std::string::npos);
  EXPECT_NE(refusal([](LinearRouteParams& p) { p.product.weight = nullptr; }).find("no weight"), std::string::npos);
  EXPECT_NE(refusal([](LinearRouteParams& p) { p.route.rows.capacity = 69; }).find("the same rows"), std::string::npos);
}

// Every way to spread `pairs` pairs over `experts` experts, at most `rows` on each: the padded rows that the worst
// takes.
std::int64_t most_padded(std::int64_t pairs, std::int64_t experts, std::int64_t rows, std::int64_t alignment) {
  if (experts == 0) return pairs == 0 ? 0 : -1;
  std::int64_t most = -1;
  for (std::int64_t here = 0; here <= std::min(pairs, rows); ++here) {
    const std::int64_t rest = most_padded(pairs - here, experts - 1, rows, alignment);
    if (rest >= 0) most = std::max(most, (here + alignment - 1) / alignment * alignment + rest);
  }
  return most;
}

TEST(Route, SortedCapacityHoldsTheWorstCase) {
  EXPECT_EQ(sorted_capacity(512, 53, 3, 1), 1536);
  EXPECT_EQ(sorted_capacity(1, 53, 3, 128), 384);
  EXPECT_EQ(sorted_capacity(0, 53, 3, 128), 0);
  for (const std::int64_t alignment : {1, 2, 3, 4}) {
    for (const std::int64_t experts : {1, 2, 4}) {
      for (std::int64_t top_k = 1; top_k <= experts; ++top_k) {
        for (std::int64_t rows = 0; rows < 7; ++rows) {
          const std::int64_t capacity = sorted_capacity(rows, experts, top_k, alignment);
          EXPECT_GE(capacity, most_padded(rows * top_k, experts, rows, alignment));
          EXPECT_EQ(capacity % alignment, 0);
        }
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
  const std::int64_t rows = at_most_on_simt(2000, 300);
  RouteProblem x(random, rows, rows - 1, 64, 6);
  x.run(1);
  const auto selected = x.selected.snapshot(), weights = x.weights.snapshot();
  for (auto* array : std::initializer_list<GuardedBuffer*>{&x.selected, &x.weights}) array->poison();
  x.run(2);
  EXPECT_TRUE(selected == x.selected.snapshot() && weights == x.weights.snapshot());
}

// The elements between the columns and the stride are still poisoned.
void check_behind_columns(const TestMatrix& matrix) {
  const auto size = static_cast<std::int64_t>(size_of(matrix.dtype()));
  for (std::int64_t r = 0; r < matrix.rows(); ++r) {
    const unsigned char* row = matrix.data() + r * matrix.stride() * size;
    for (std::int64_t i = matrix.cols() * size; i < matrix.stride() * size; ++i) ASSERT_EQ(row[i], kPoison);
  }
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

TEST(GatherRows, PaddingIsZero) {
  Random random(49);
  const TestArray<std::int32_t> sources({2, -1, 0, -1, -1, 1});
  // Rows that start at multiples of 16, 4 and 1 bytes, and that end between them.
  for (const auto& [cols, padding] : {std::array{1408, 0}, {1408, 16}, {130, 14}, {300, 0}, {130, 2}, {5, 0}}) {
    for (const ScaleKind kind : {ScaleKind::kPerRow, ScaleKind::kPerBlock}) {
      TestOperand x(kind, 3, cols, padding, 0), sorted(kind, 6, cols, padding, 2);
      x.fill_random(random);
      Runner runner(1);
      const GatherRowsParams params{
          .x = x.view(), .sources = sources.get(), .sorted = sorted.view(), .sorted_rows = {5, nullptr}};
      runner.run([&](OpContext& context) { gather_rows(context, params); }, {&sorted.codes, &sorted.scales});
      for (std::int64_t i = 0; i < 5; ++i) {
        const std::vector<unsigned char> zeros(static_cast<std::size_t>(cols), 0);
        ASSERT_EQ(sorted.codes.row_bytes(i), sources[i] < 0 ? zeros : x.codes.row_bytes(sources[i]));
        for (std::int64_t c = 0; c < cols; ++c) {
          ASSERT_EQ(sorted.scale(i, c), sources[i] < 0 ? kE4M3MinScale : x.scale(sources[i], c));
        }
      }
      for (const unsigned char byte : sorted.codes.row_bytes(5)) ASSERT_EQ(byte, kPoison);
      for (std::int64_t i = 0; i < sorted.scales.size(); ++i) {
        ASSERT_TRUE(i % sorted.scale_stride < 5 || std::isnan(sorted.scales[i])) << "a scale of no row";
      }
      check_behind_columns(sorted.codes);
    }
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      const TestMatrix x = random_matrix(random, dtype, 3, cols);
      TestMatrix sorted(dtype, 6, cols, padding);
      Runner runner(1);
      const GatherRowsParams params{.x = {.values = x.view()},
                                    .sources = sources.get(),
                                    .sorted = {.values = sorted.view()},
                                    .sorted_rows = {6, nullptr}};
      runner.run([&](OpContext& context) { gather_rows(context, params); }, {&sorted});
      check_behind_columns(sorted);
      for (std::int64_t i = 0; i < 6; ++i) {
        const std::vector<unsigned char> zeros(static_cast<std::size_t>(cols) * size_of(dtype), 0);
        ASSERT_EQ(sorted.row_bytes(i), sources[i] < 0 ? zeros : x.row_bytes(sources[i]));
      }
    }
  }
}

TEST(MoeCombine, MatchesFloat64) {
  Random random(45);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const bool with_shared : {false, true}) {
      // Rows that start anywhere, and at multiples of 16 bytes.
      for (const auto& [rows, live, top_k, width, padding] : {std::array{0, 0, 1, 8, 1},
                                                              {5, 4, 1, 17, 1},
                                                              {33, 33, 6, 257, 1},
                                                              {90, 80, 2, 512, 1},
                                                              {0, 0, 1, 8, 8},
                                                              {5, 4, 1, 16, 8},
                                                              {33, 33, 6, 2312, 8},
                                                              {90, 80, 3, 1408, 8}}) {
        const TestMatrix experts = random_matrix(random, dtype, rows * top_k, width, 1.0f, padding);
        const TestMatrix shared = random_matrix(random, dtype, rows, width, 1.0f, 2 * padding);
        TestMatrix h = random_matrix(random, dtype, rows, width, 1.0f, 3 * padding);
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
        TestMatrix old(dtype, rows, width, 3 * padding);
        old.restore(h.snapshot());
        Runner runner(2);
        runner.run([=](OpContext& context) { moe_combine(context, params); }, {&h});
        check_behind_columns(h);
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
  EXPECT_EQ(refusal([](auto& p) { p.alignment = 0; }),
            "[route] got alignment = 0, want at least 1. Correct the shape.");
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
