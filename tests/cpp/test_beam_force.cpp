// Forced continuations against float64.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "support/beams.h"
#include "support/offsets.h"
#include "support/runner.h"

namespace onerec::test {
namespace {

using Counts = std::vector<std::int64_t>;

struct Problem {
  Counts rows, widths;
  std::int64_t codebook;
  int level;
  static constexpr std::int64_t kLevels = 3, kSpare = 2;
  TestMatrix logits;
  TestBeams current, next;
  TestArray<std::int32_t> row_offsets, next_offsets, forced, status;

  Problem(Random& random, const Counts& widths_, std::int64_t codebook_, int level_)
      : rows(level_ == 0 ? Counts(widths_.size(), 1) : widths_),
        widths(widths_),
        codebook(codebook_),
        level(level_),
        logits(random_matrix(random, DType::kF32, total_of(rows) + kSpare, codebook, 3.0f, 1)),
        current(total_of(rows) + kSpare, kLevels, level),
        next(total_of(widths) + kSpare, kLevels, level + 1),
        row_offsets(offsets_of(rows)),
        next_offsets(offsets_of(widths)),
        forced((total_of(widths) + kSpare) * kLevels),
        status(static_cast<std::int64_t>(widths.size())) {
    current.fill_random(random);
    for (float& score : current.scores) score = -std::abs(normal(random));
    for (std::int32_t& code : forced) code = static_cast<std::int32_t>(uniform(random, 0, codebook - 1));
    for (std::int32_t& value : status) value = 0;
  }

  BeamForceParams params() const {
    return {.level = level,
            .levels = kLevels,
            .logits = logits.view(),
            .codebook = codebook,
            .batch = static_cast<std::int64_t>(widths.size()),
            .rows_capacity = total_of(rows) + kSpare,
            .next_capacity = total_of(widths) + kSpare,
            .row_offsets = row_offsets.get(),
            .next_offsets = next_offsets.get(),
            .forced = forced.get(),
            .current = current.view(),
            .next = next.view(),
            .status = status.get()};
  }

  void run(int threads = 2) {
    Runner runner(threads);
    auto outputs = next.buffers();
    outputs.push_back(&status);
    runner.run([p = params()](OpContext& context) { beam_force(context, p); }, outputs);
  }

  std::int64_t parent(std::int64_t b, std::int64_t i) const { return row_offsets[b] + (level == 0 ? 0 : i); }

  double log_probability(std::int64_t row, std::int64_t code) const {
    double sum = 0;
    for (std::int64_t c = 0; c < codebook; ++c) sum += std::exp(static_cast<double>(logits.get(row, c)));
    return logits.get(row, code) - std::log(sum);
  }

  void check_links(std::int64_t b, std::int64_t i) const {
    const std::int64_t row = next_offsets[b] + i;
    ASSERT_EQ(next.codes[row * kLevels + level], forced[row * kLevels + level]);
    ASSERT_EQ(next.ancestry[static_cast<std::size_t>(level)][row], parent(b, i));
    for (int s = 0; s < level; ++s) {
      ASSERT_EQ(next.codes[row * kLevels + s], current.codes[parent(b, i) * kLevels + s]);
      ASSERT_EQ(next.ancestry[static_cast<std::size_t>(s)][row],
                current.ancestry[static_cast<std::size_t>(s)][parent(b, i)]);
    }
  }
};

TEST(BeamForce, AddsTheLogProbabilityOfTheGivenCode) {
  Random random(61);
  for (const int level : {0, 1, 2}) {
    for (const std::int64_t codebook : {1, 5, 64, 100, 8192}) {
      Problem x(random, {3, 0, 1, 13}, codebook, level);
      x.run();
      for (std::int64_t b = 0; b < 4; ++b) {
        EXPECT_EQ(x.status[b], 0);
        for (std::int64_t i = 0; i < x.widths[static_cast<std::size_t>(b)]; ++i) {
          const std::int64_t row = x.next_offsets[b] + i, parent = x.parent(b, i);
          const double want = x.current.scores[parent] + x.log_probability(parent, x.forced[row * 3 + level]);
          ASSERT_NEAR(x.next.scores[row], want, 2e-5);
          ASSERT_EQ(x.next.states[row], 0);
          x.check_links(b, i);
        }
      }
      for (std::int64_t i = x.next_offsets[4]; i < x.next.states.size(); ++i)
        ASSERT_EQ(x.next.states[i], -1) << "spare";
    }
  }
}

TEST(BeamForce, DoesNotDependOnThreads) {
  Random random(62);
  Problem x(random, {60, 41}, 4096, 1);
  x.run(1);
  const auto want = x.next.scores.snapshot();
  x.next.scores.poison();
  x.run(2);
  EXPECT_TRUE(want == x.next.scores.snapshot());
}

TEST(BeamForce, ReportsRowsThatAreNotFinite) {
  for (const float bad : {std::nanf(""), INFINITY}) {
    Random random(63);
    Problem x(random, {2, 2, 2}, 40, 1);
    x.logits.set(1, 39, bad);
    x.logits.set(4, 0, bad);
    x.current.states[4] = -1;  // dead before: nobody reads its logits
    x.run();
    EXPECT_EQ(x.status[0], 1);
    EXPECT_EQ(x.status[1], 0);
    EXPECT_EQ(x.status[2], 0);
    for (const std::int64_t dead : {1, 4}) {
      EXPECT_EQ(x.next.scores[dead], -INFINITY);
      EXPECT_EQ(x.next.states[dead], -1);
    }
    EXPECT_EQ(x.next.states[0], 0);
    x.check_links(0, 1);
  }
}

TEST(BeamForce, RefusesWrongParameters) {
  Random random(64);
  const Problem x(random, {2}, 8, 1);
  Runner runner;
  const auto refusal = [&](const std::function<void(BeamForceParams&)>& change) {
    BeamForceParams params = x.params();
    change(params);
    return runner.refusal([&](OpContext& context) { beam_force(context, params); });
  };
  EXPECT_EQ(refusal([](auto&) {}), "");
  EXPECT_EQ(refusal([](auto& p) { p.forced = nullptr; }),
            "[beam_force] got no forced, want an array. Pass its address.");
  EXPECT_NE(refusal([](auto& p) { p.levels = 9; }), "");
  EXPECT_NE(refusal([](auto& p) { p.logits.dtype = DType::kBF16; }), "");
}

}  // namespace
}  // namespace onerec::test
