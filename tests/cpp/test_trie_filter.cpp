// Blocked edges against a count of the items under every edge.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <set>

#include "ops/beam_search.h"
#include "support/offsets.h"
#include "support/runner.h"

namespace onerec::test {
namespace {

// Levels of consecutive item ranges, each level refining the one above it; the last one may hold several items per
// edge.
struct Problem {
  static constexpr int kLevels = 3;
  std::int64_t items;
  std::vector<TestArray<std::int32_t>> item_begin;
  TestArray<TrieTable> trie;
  std::vector<std::set<std::int32_t>> excluded_of;
  TestArray<std::int32_t> excluded;
  TestArray<std::int32_t> offsets;
  std::array<std::int64_t, kMaxLevels> word_offset = {};
  std::int64_t words = 0;
  TestArray<std::uint32_t> blocked;

  Problem(Random& random, std::int64_t items_, const std::vector<std::int64_t>& excluded_counts)
      : items(items_),
        trie(1),
        excluded(0),
        offsets(static_cast<std::int64_t>(excluded_counts.size()) + 1),
        blocked(0) {
    std::set<std::int32_t> cuts = {0, static_cast<std::int32_t>(items)};
    trie[0] = {};
    trie[0].levels = kLevels;
    for (int t = 0; t < kLevels; ++t) {
      for (std::int64_t i = items / (t == 0 ? 20 : 3); i > 0; --i) {
        cuts.insert(static_cast<std::int32_t>(uniform(random, 0, items)));
      }
      item_begin.emplace_back(std::vector<std::int32_t>(cuts.begin(), cuts.end()));
    }
    for (std::size_t t = 0; t < kLevels; ++t) {
      trie[0].level[t].item_begin = item_begin[t].get();
      trie[0].edges[t] = static_cast<std::int32_t>(item_begin[t].size()) - 1;
      word_offset[t] = words;
      words += (trie[0].edges[t] + 31) / 32 + static_cast<std::int64_t>(t);  // with words that no edge uses
    }
    offsets[0] = 0;
    std::vector<std::int32_t> all_excluded;
    for (std::size_t b = 0; b < excluded_counts.size(); ++b) {
      std::set<std::int32_t> chosen;
      // Runs of neighbours, so that whole edges are covered.
      while (static_cast<std::int64_t>(chosen.size()) < std::min(excluded_counts[b], items)) {
        const std::int64_t first = uniform(random, 0, items - 1);
        for (std::int64_t i = first; i < std::min(first + uniform(random, 1, 6), items); ++i) {
          chosen.insert(static_cast<std::int32_t>(i));
        }
      }
      all_excluded.insert(all_excluded.end(), chosen.begin(), chosen.end());
      excluded_of.push_back(std::move(chosen));
      offsets[static_cast<std::int64_t>(b) + 1] = static_cast<std::int32_t>(all_excluded.size());
    }
    excluded = TestArray<std::int32_t>(all_excluded);
    blocked = TestArray<std::uint32_t>(words * static_cast<std::int64_t>(excluded_counts.size()));
  }

  TrieFilterParams params() const {
    return {.trie = trie.get(),
            .levels = kLevels,
            .excluded = excluded.get(),
            .excluded_offsets = offsets.get(),
            .batch = static_cast<std::int64_t>(excluded_of.size()),
            .blocked = blocked.get(),
            .words = words,
            .word_offset = word_offset};
  }

  void run(int threads) {
    Runner runner(threads);
    runner.run([p = params()](OpContext& context) { trie_filter(context, p); }, {&blocked});
  }

  std::vector<std::uint32_t> want(std::size_t b) const {
    std::vector<std::uint32_t> bits(static_cast<std::size_t>(words));
    for (std::size_t t = 0; t < kLevels; ++t) {
      for (std::int64_t e = 0; e + 1 < item_begin[t].size(); ++e) {
        bool all = true;
        for (std::int32_t i = item_begin[t][e]; i < item_begin[t][e + 1]; ++i) all = all && excluded_of[b].contains(i);
        if (all) bits[static_cast<std::size_t>(word_offset[t] + e / 32)] |= std::uint32_t{1} << (e % 32);
      }
    }
    return bits;
  }

  void check() const {
    for (std::size_t b = 0; b < excluded_of.size(); ++b) {
      const auto first = blocked.begin() + static_cast<std::int64_t>(b) * words;
      ASSERT_TRUE(std::equal(first, first + words, want(b).begin())) << "request " << b << " of " << items << " items";
    }
  }
};

TEST(TrieFilter, MatchesACountOfItems) {
  Random random(71);
  for (const std::int64_t items : {1, 2, 31, 97, 1000, 5003}) {
    Problem x(random, items, {0, 1, items / 2, items, 5, items - 1});
    x.run(2);
    x.check();
  }
}

TEST(TrieFilter, DoesNotDependOnThreads) {
  Random random(72);
  Problem x(random, 20011, {500, 9000, 20011, 0, 77});
  for (const int threads : {1, 2, 3}) {
    x.blocked.poison();
    x.run(threads);
    x.check();
  }
}

TEST(TrieFilter, CoversManyWords) {
  Random random(74);
  Problem x(random, 400000, {30000, 0, 2});
  x.run(2);
  x.check();
}

TEST(TrieFilter, RefusesWrongParameters) {
  Random random(73);
  const Problem x(random, 50, {3});
  Runner runner;
  const auto refusal = [&](const std::function<void(TrieFilterParams&)>& change) {
    TrieFilterParams params = x.params();
    change(params);
    return runner.refusal([&](OpContext& context) { trie_filter(context, params); });
  };
  EXPECT_EQ(refusal([](auto&) {}), "");
  EXPECT_EQ(refusal([](auto& p) { p.trie = nullptr; }), "[trie_filter] got no trie, want an array. Pass its address.");
  EXPECT_NE(refusal([](auto& p) { p.words = 1; }), "");
  EXPECT_NE(refusal([](auto& p) { p.levels = 9; }), "");
}

}  // namespace
}  // namespace onerec::test
