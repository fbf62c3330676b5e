// One step of a search, and what a full sort of all its candidates makes of it.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "backends/cpu/beam_score.h"
#include "support/beams.h"
#include "support/offsets.h"
#include "support/runner.h"

namespace onerec::test {

struct Candidate {
  float score;
  std::int64_t row;
  std::int32_t code, state;
};

// A search step in which requests with an odd index are constrained if `density` > 0. Rows of logits are vectors of 16
// bytes if the codebook is a multiple of eight.
struct Selection {
  std::vector<std::int64_t> rows, widths;
  std::int64_t codebook;
  int level, levels;
  TestMatrix logits;
  TestBeams current, next;
  TestArray<std::int32_t> row_offsets, next_offsets, status;
  TestArray<std::uint8_t> constrained;
  TestTrieLevel edges;
  TestArray<TrieTable> trie;
  std::int64_t words;
  TestArray<std::uint32_t> blocked;
  bool with_trie, with_blocked;

  static constexpr std::int64_t kNodes = 5, kWordOffset = 2, kSpare = 3;

  Selection(Random& random, std::vector<std::int64_t> rows_, std::vector<std::int64_t> widths_, std::int64_t codebook_,
            int level_ = 1, double density = 0.0, bool with_blocked_ = false)
      : rows(std::move(rows_)),
        widths(std::move(widths_)),
        codebook(codebook_),
        level(level_),
        levels(3),
        logits(random_matrix(random, DType::kF32, total_of(rows) + kSpare, codebook, 2.0f, codebook % 8 == 0 ? 4 : 3)),
        current(total_of(rows) + kSpare, levels, level),
        next(total_of(widths) + kSpare, levels, level + 1),
        row_offsets(offsets_of(rows)),
        next_offsets(offsets_of(widths)),
        status(static_cast<std::int64_t>(rows.size())),
        constrained(static_cast<std::int64_t>(rows.size())),
        edges(random, kNodes, codebook, density),
        trie(1),
        words(kWordOffset + edges.code.size() / 32 + 2),
        blocked(words * static_cast<std::int64_t>(rows.size())),
        with_trie(density > 0),
        with_blocked(with_blocked_) {
    current.fill_random(random);
    for (float& score : current.scores) score = -std::abs(normal(random));
    for (std::int64_t b = 0; b < status.size(); ++b) {
      status[b] = 0;
      constrained[b] = with_trie && b % 2 == 1 ? 1 : 0;
      for (std::int64_t r = row_offsets[b]; r < row_offsets[b + 1]; ++r) {
        if (constrained[b] != 0) current.states[r] = static_cast<std::int32_t>(uniform(random, 0, kNodes - 1));
      }
    }
    for (std::uint32_t& word : blocked) word = static_cast<std::uint32_t>(random() & random());
    trie[0] = {};
    trie[0].levels = levels;
    trie[0].level[static_cast<std::size_t>(level)] = {edges.row_ptr.get(), edges.code.get(), nullptr};
  }

  void kill(std::int64_t row) {
    current.scores[row] = -INFINITY;
    current.states[row] = -1;
  }

  BeamSelectParams params() const {
    return {.level = level,
            .levels = levels,
            .logits = logits.view(),
            .codebook = codebook,
            .batch = static_cast<std::int64_t>(rows.size()),
            .rows_capacity = total_of(rows) + kSpare,
            .next_capacity = total_of(widths) + kSpare,
            .max_request_rows = largest_of(rows) + kSpare,
            .max_request_next = largest_of(widths) + kSpare,
            .row_offsets = row_offsets.get(),
            .next_offsets = next_offsets.get(),
            .constrained = with_trie ? constrained.get() : nullptr,
            .trie = with_trie ? trie.get() : nullptr,
            .blocked = with_blocked ? blocked.get() : nullptr,
            .words = words,
            .word_offset = kWordOffset,
            .current = current.view(),
            .next = next.view(),
            .status = status.get()};
  }

  std::vector<GuardedBuffer*> outputs() {
    auto list = next.buffers();
    list.push_back(&status);
    return list;
  }

  void run(int threads = 2) {
    Runner runner(threads);
    runner.run([p = params()](OpContext& context) { beam_select(context, p); }, outputs());
  }

  bool is_blocked(std::int64_t b, std::int64_t e) const {
    return with_blocked && (blocked[b * words + kWordOffset + e / 32] >> (e % 32) & 1) != 0;
  }

  std::vector<Candidate> candidates(std::int64_t b, bool& broken) const {
    std::vector<Candidate> list;
    for (std::int64_t r = row_offsets[b]; r < row_offsets[b + 1]; ++r) {
      if (current.states[r] < 0) continue;
      const float* row = logits.view().row<float>(r);
      const float lse = cpu::log_sum_exp(row, codebook);
      if (!std::isfinite(lse)) {
        broken = true;
        continue;
      }
      const auto add = [&](std::int32_t code, std::int32_t state) {
        list.push_back({current.scores[r] + (row[code] - lse), r, code, state});
      };
      if (constrained[b] == 0) {
        for (std::int32_t c = 0; c < codebook; ++c) add(c, 0);
        continue;
      }
      const std::int32_t node = current.states[r];
      for (std::int32_t e = edges.row_ptr[node]; e < edges.row_ptr[node + 1]; ++e) {
        if (!is_blocked(b, e)) add(edges.code[e], e);
      }
    }
    return list;
  }

  // On the CPU the result is that of the sort, to the bit. Other devices have another log-sum-exp: see check_choice().
  void check() const {
    for (std::int64_t b = 0; b < status.size(); ++b) {
      bool broken = false;
      std::vector<Candidate> want = candidates(b, broken);
      EXPECT_EQ(status[b], broken ? 1 : 0) << "request " << b;
      std::sort(want.begin(), want.end(), [](const Candidate& x, const Candidate& y) {
        return x.score != y.score ? x.score > y.score : std::pair(x.row, x.code) < std::pair(y.row, y.code);
      });
      if (test_device() != TestDevice::kCpu) check_choice(b, want);
      if (::testing::Test::HasFatalFailure()) return;
      for (std::int64_t i = 0; i < widths[static_cast<std::size_t>(b)]; ++i) {
        const bool dead = i >= static_cast<std::int64_t>(want.size());
        const Candidate c = dead ? Candidate{-INFINITY, row_offsets[b], 0, -1} : want[static_cast<std::size_t>(i)];
        check_beam(next_offsets[b] + i, c, rows[static_cast<std::size_t>(b)] > 0);
        if (::testing::Test::HasFatalFailure()) return;
      }
    }
    for (std::int64_t i = next_offsets[status.size()]; i < next.states.size(); ++i)
      ASSERT_EQ(next.states[i], -1) << "spare";
  }

  // Checks the beams of request b as far as a log-sum-exp of other roundings decides them: their scores are near those
  // of `sorted` and in order, no candidate is chosen twice, and none that was left out is certainly before one that was
  // chosen. Leaves in `sorted` what was chosen, with the scores found.
  void check_choice(std::int64_t b, std::vector<Candidate>& sorted) const {
    using Place = std::pair<std::int64_t, std::int32_t>;
    std::map<Place, Candidate> left;
    for (const Candidate& c : sorted) left[{c.row, c.code}] = c;
    const auto count = std::min(widths[static_cast<std::size_t>(b)], static_cast<std::int64_t>(sorted.size()));
    sorted.clear();
    float lowest = INFINITY;
    std::map<std::string, std::vector<Candidate>> chosen_of;  // by what the row's scores come from
    for (std::int64_t i = next_offsets[b]; i < next_offsets[b] + count; ++i) {
      const Place place(next.ancestry[static_cast<std::size_t>(level)][i], next.codes[i * levels + level]);
      const auto found = left.find(place);
      ASSERT_TRUE(found != left.end()) << "beam " << i << ": no candidate, or a second time";
      Candidate c = found->second;
      left.erase(found);
      ASSERT_FALSE(is_lower(c.score, next.scores[i]) || is_lower(next.scores[i], c.score))
          << "beam " << i << ": " << next.scores[i] << ", want about " << c.score;
      lowest = std::min(lowest, c.score);
      c.score = next.scores[i];
      if (!sorted.empty()) {
        const Candidate& before = sorted.back();
        ASSERT_TRUE(c.score < before.score || (c.score == before.score && Place(before.row, before.code) < place))
            << "beam " << i;
      }
      sorted.push_back(c);
      chosen_of[origin_of(c.row)].push_back(c);
    }
    std::map<std::int64_t, const std::vector<Candidate>*> rivals_of;
    for (const auto& [place, c] : left) {
      ASSERT_FALSE(is_lower(lowest, c.score)) << "left out: row " << c.row << ", code " << c.code;
      if (!rivals_of.contains(c.row)) rivals_of[c.row] = &chosen_of[origin_of(c.row)];
      for (const Candidate& rival : *rivals_of[c.row]) {
        const bool before =
            logits.get(c.row, c.code) >= logits.get(rival.row, rival.code) && place < Place(rival.row, rival.code);
        ASSERT_FALSE(before) << "left out: row " << c.row << ", code " << c.code;
      }
    }
  }

  static bool is_lower(float a, float b) { return a < b && !(a >= b - 1e-5f * (1 + std::abs(b))); }

  // Rows with the same bytes here give the same logit the same score.
  std::string origin_of(std::int64_t row) const {
    const std::vector<unsigned char> bytes = logits.row_bytes(row);
    const auto* score = reinterpret_cast<const char*>(current.scores.get() + row);
    return std::string(bytes.begin(), bytes.end()) + std::string(score, sizeof(float));
  }

  void check_beam(std::int64_t i, const Candidate& want, bool has_parent) const {
    ASSERT_EQ(next.scores[i], want.score) << "beam " << i;
    ASSERT_EQ(next.states[i], want.state) << "beam " << i;
    ASSERT_EQ(next.codes[i * levels + level], want.code) << "beam " << i;
    if (!has_parent) return;
    for (int s = 0; s < level; ++s) {
      ASSERT_EQ(next.codes[i * levels + s], current.codes[want.row * levels + s]) << "beam " << i;
      ASSERT_EQ(next.ancestry[static_cast<std::size_t>(s)][i], current.ancestry[static_cast<std::size_t>(s)][want.row]);
    }
    ASSERT_EQ(next.ancestry[static_cast<std::size_t>(level)][i], want.row) << "beam " << i;
  }
};

}  // namespace onerec::test
