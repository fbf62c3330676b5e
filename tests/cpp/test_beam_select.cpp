// Beam selection against a full sort of all candidates, and its log-sum-exp against float64.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "support/selection.h"

namespace onerec::test {
namespace {

using Counts = std::vector<std::int64_t>;

TEST(BeamSelect, MatchesAFullSort) {
  Random random(51);
  for (const std::int64_t codebook : {1, 2, 7, 16, 31, 64, 100, 256, 8192}) {
    for (const std::int64_t width : {1, 2, 13, 64, 1024}) {
      Selection x(random, {1, 17, 3, 5}, {width, width, width / 2, 0}, codebook, 1, 0.3);
      x.run();
      x.check();
    }
  }
}

TEST(BeamSelect, MatchesAFullSortOnRandomShapes) {
  Random random(52);
  for (std::int64_t i = at_most_on_simt(150, 25); i > 0; --i) {
    Counts rows, widths;
    for (std::int64_t b = uniform(random, 0, 5); b > 0; --b) {
      rows.push_back(uniform(random, 0, 3) == 0 ? uniform(random, 0, 2) : uniform(random, 1, 90));
      widths.push_back(uniform(random, 0, 3) == 0 ? uniform(random, 0, 2) : uniform(random, 1, 200));
    }
    const std::int64_t codebook = uniform(random, 0, 1) == 0 ? uniform(random, 1, 40) : uniform(random, 1, 600);
    const double density = std::array{0.0, 0.01, 0.2, 1.0}[static_cast<std::size_t>(uniform(random, 0, 3))];
    Selection x(random, rows, widths, codebook, static_cast<int>(uniform(random, 0, 2)), density,
                uniform(random, 0, 1) == 1);
    // Coarse logits and scores make many ties; steep ones put all survivors into few rows.
    const float step = std::array{0.0f, 0.5f, 2.0f}[static_cast<std::size_t>(uniform(random, 0, 2))];
    for (std::int64_t r = 0; r < total_of(rows); ++r) {
      for (std::int64_t c = 0; c < codebook && step > 0; ++c)
        x.logits.set(r, c, std::round(x.logits.get(r, c) / step) * step);
      if (step > 0) x.current.scores[r] = std::round(x.current.scores[r] / step) * step * 4;
      if (uniform(random, 0, 9) == 0) x.kill(r);
    }
    x.run(static_cast<int>(uniform(random, 1, 4)));
    x.check();
    ASSERT_FALSE(HasFatalFailure()) << "case " << i;
  }
}

TEST(BeamSelect, OrdersEqualScoresByRowAndCode) {
  Random random(53);
  for (const auto& [rows, width, codebook] :
       {std::array{1, 64, 65536}, {64, 64, 256}, {7, 1000, 300}, {30, 1024, 2048}, {3, 50, 5}}) {
    Selection x(random, {rows, rows}, {width, width}, codebook, 1, 0.5);
    for (std::int64_t r = 0; r < 2 * rows; ++r) {
      for (std::int64_t c = 0; c < codebook; ++c) x.logits.set(r, c, 1.0f);
      x.current.scores[r] = 0.0f;
    }
    x.run();
    x.check();
  }
}

TEST(BeamSelect, MatchesAFullSortOnLargeShapes) {
  Random random(61);
  struct Shape {
    Counts rows, widths;
    std::int64_t codebook;
    double density;
  };
  const std::int64_t many = at_most_on_simt(512, 24);
  for (const Shape& shape :
       {Shape{{2, 3}, {1024, 700}, 65536, 0.0}, Shape{{many, many}, {many, many}, 8192, 0.004},
        Shape{{many, 1}, {1024, 1024}, 1000, 1.0}, Shape{{1, 2, 200, 0, 3}, {900, 3, 5, 7, 0}, 2047, 0.0},
        Shape{{1, 1}, {512, 512}, at_most_on_simt(65536, 20000), 0.5}}) {
    Selection x(random, shape.rows, shape.widths, shape.codebook, 1, shape.density, shape.density > 0.1);
    x.run();
    x.check();
  }
}

TEST(BeamSelect, FindsSurvivorsWhereverTheyAre) {
  Random random(62);
  for (const std::int64_t winner : {0, 39}) {
    for (const std::int64_t width : {1, 600}) {
      Selection x(random, {40, 40}, {width, width}, 2000, 1, 0.6);
      for (std::int64_t r = 0; r < 80; ++r) {
        if (r % 40 != winner) x.current.scores[r] -= 100.0f;  // all survivors come from one row
      }
      x.run();
      x.check();
    }
  }
  Selection x(random, {200, 200}, {300, 300}, 300, 1, 0.1);
  for (std::int64_t r = 0; r < 400; ++r) {
    if (r % 50 != 3) x.kill(r);
  }
  x.run();
  x.check();
}

// Equal rows in one request: a score's codes are tied within a row and across rows.
TEST(BeamSelect, OrdersEqualRows) {
  Random random(63);
  for (const std::int64_t width : {1, 100, 1024}) {
    Selection x(random, {60, 60}, {width, width}, 500, 2, 0.3);
    for (std::int64_t r = 0; r < 120; ++r) {
      for (std::int64_t c = 0; c < 500; ++c) x.logits.set(r, c, std::round(x.logits.get(r % 4, c)));
      x.current.scores[r] = r % 3 == 0 ? -1.0f : -1.5f;
    }
    x.run();
    x.check();
  }
}

// A code of probability 0 is a candidate like any other, and the last one.
TEST(BeamSelect, KeepsCandidatesOfScoreMinusInfinity) {
  Random random(64);
  for (const std::int64_t codebook : {9, 300, 3000}) {
    Selection x(random, {5, 5}, {1000, 1000}, codebook, 1, 0.7);
    for (std::int64_t r = 0; r < 10; ++r) {
      for (std::int64_t c = r % 2; c < codebook; ++c) x.logits.set(r, c, c % 7 == 3 ? 1.0f : -INFINITY);
    }
    x.current.scores[1] = -INFINITY;  // alive
    x.run();
    x.check();
  }
}

// A codebook of one code: logit - lse is 0, so the score is the cumulative one, of either sign.
TEST(BeamSelect, TreatsNegativeZeroAsZero) {
  Random random(54);
  Selection x(random, {4}, {4}, 1);
  for (std::int64_t r = 0; r < 4; ++r) {
    x.logits.set(r, 0, r < 2 ? 0.0f : -0.0f);
    x.current.scores[r] = r % 2 == 0 ? -0.0f : 0.0f;
  }
  x.run();
  for (std::int64_t i = 0; i < 4; ++i) EXPECT_EQ(x.next.ancestry[1][i], i);
}

TEST(BeamSelect, ReportsRowsThatAreNotFinite) {
  for (const float bad : {std::nanf(""), INFINITY, -INFINITY}) {
    for (const std::int64_t codebook : {5, 100, 700}) {
      Random random(55);
      Selection x(random, {6, 6, 6, 6}, {20, 20, 20, 20}, codebook, 1, 0.5);
      x.logits.set(2, codebook - 1, bad);  // a single -inf is a code of probability 0
      for (std::int64_t c = 0; c < codebook; ++c) x.logits.set(7, c, bad);
      x.logits.set(13, 0, bad);
      x.kill(13);  // nobody reads a dead row
      x.run();
      x.check();
      EXPECT_EQ(x.status[1], 1);
      EXPECT_EQ(x.status[2], 0);
      EXPECT_EQ(x.status[3], 0);
    }
  }
}

TEST(BeamSelect, KeepsAStatusThatIsRaised) {
  Random random(56);
  Selection x(random, {2}, {2}, 8);
  x.status[0] = 1;
  x.run();
  EXPECT_EQ(x.status[0], 1);
}

TEST(BeamSelect, YieldsDeadBeamsWhereCandidatesAreMissing) {
  Random random(57);
  Selection x(random, {3, 3, 0}, {30, 30, 4}, 7, 2, 0.4, true);
  for (std::int64_t r = 0; r < 3; ++r) x.kill(r);
  for (std::uint32_t& word : x.blocked) word = ~0u;
  x.run();
  x.check();
  for (std::int64_t i = 0; i < 64; ++i) EXPECT_EQ(x.next.states[i], -1);
}

TEST(BeamSelect, DoesNotDependOnThreads) {
  Random random(58);
  Selection x(random, {128, 100, 1}, {128, 300, 512}, 2048, 1, 0.1);
  x.run(1);
  x.check();
  const auto scores = x.next.scores.snapshot(), codes = x.next.codes.snapshot();
  for (const int threads : {2, 5}) {
    for (GuardedBuffer* buffer : x.next.buffers()) buffer->poison();
    x.run(threads);
    EXPECT_TRUE(scores == x.next.scores.snapshot() && codes == x.next.codes.snapshot()) << threads << " threads";
  }
}

TEST(BeamSelect, LogSumExpMatchesFloat64) {
  ONEREC_CPU_ONLY();
  Random random(59);
  for (const std::int64_t count : {1, 2, 63, 64, 65, 1000, 65536}) {
    for (const float deviation : {1e-6f, 1.0f, 30.0f}) {
      const TestArray<float> logits = random_floats(random, count, deviation);
      const double largest = *std::max_element(logits.begin(), logits.end());
      double sum = 0;
      for (const float logit : logits) sum += std::exp(logit - largest);
      const double want = largest + std::log(sum);
      EXPECT_NEAR(cpu::log_sum_exp(logits.get(), count), want, 2e-6 * (1 + std::abs(want)));
    }
  }
}

TEST(BeamSelect, RefusesWrongParameters) {
  Random random(60);
  const Selection x(random, {2}, {2}, 8);
  Runner runner;
  const auto refusal = [&](const std::function<void(BeamSelectParams&)>& change) {
    BeamSelectParams params = x.params();
    change(params);
    return runner.refusal([&](OpContext& context) { beam_select(context, params); });
  };
  EXPECT_EQ(refusal([](auto&) {}), "");
  EXPECT_EQ(refusal([](auto& p) { p.level = 3; }), "[beam_select] got level 3, want 0 to 2. Correct the step.");
  EXPECT_EQ(refusal([](auto& p) { p.codebook = 0; }),
            "[beam_select] got a codebook of 0 codes, want 1 to 2147483647. Correct the configuration.");
  EXPECT_NE(refusal([](auto& p) { p.codebook = 9; }), "");
  EXPECT_NE(refusal([](auto& p) { p.max_request_rows = std::int64_t{1} << 30; }), "");
  EXPECT_NE(refusal([](auto& p) { p.status = nullptr; }), "");
  EXPECT_NE(refusal([](auto& p) { p.next.scores = nullptr; }), "");
  EXPECT_NE(refusal([&](auto& p) { p.trie = x.trie.get(); }), "");
}

}  // namespace
}  // namespace onerec::test
