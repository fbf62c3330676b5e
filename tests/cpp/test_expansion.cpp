// Beams to items, over a catalogue small enough to write the answers down.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "core/error.h"
#include "engine/expansion.h"
#include "support/item_index.h"

namespace onerec {
namespace {

constexpr float kDead = -std::numeric_limits<float>::infinity();

// Leaves: 0 is (0, 1) with the items 10 and 30, 1 is (0, 2) with 20, 2 is (3, 0) with 5, 25 and 40.
const IndexedItems& small_catalogue() {
  static const IndexedItems items({5, 10, 20, 25, 30, 40}, {{3, 0}, {0, 1}, {0, 2}, {3, 0}, {0, 1}, {3, 0}});
  return items;
}

// What `expand` wrote.
struct Results {
  std::vector<std::int64_t> items;
  std::vector<std::int32_t> semantic_ids;
  std::vector<float> logprobs;
  std::vector<bool> legal;
  std::vector<std::int64_t> offsets;
};

// Beams of any number of requests, as a run answers them.
struct Beams {
  std::vector<std::int32_t> offsets = {0};
  std::vector<float> scores;
  std::vector<std::int32_t> codes;
  std::vector<std::int32_t> leaves;
  std::vector<std::uint8_t> constrained;
  std::vector<std::int32_t> excluded;
  std::vector<std::int32_t> excluded_offsets = {0};
  std::vector<std::int64_t> num_results;

  void beam(float score, std::int32_t a, std::int32_t b, std::int32_t leaf) {
    scores.push_back(score);
    codes.insert(codes.end(), {a, b});
    leaves.push_back(leaf);
  }

  // Ends a request of all beams since the last one's.
  void request(bool is_constrained, std::int64_t wanted, const std::vector<std::int32_t>& positions = {}) {
    offsets.push_back(static_cast<std::int32_t>(scores.size()));
    constrained.push_back(is_constrained);
    num_results.push_back(wanted);
    excluded.insert(excluded.end(), positions.begin(), positions.end());
    excluded_offsets.push_back(static_cast<std::int32_t>(excluded.size()));
  }

  Results expand(const IndexedItems& catalogue = small_catalogue()) const {
    const RunBeams beams = {.size = static_cast<std::int64_t>(num_results.size()),
                            .offsets = offsets.data(),
                            .scores = scores.data(),
                            .codes = codes.data(),
                            .leaves = leaves.data(),
                            .constrained = constrained.data(),
                            .excluded = excluded.data(),
                            .excluded_offsets = excluded_offsets.data(),
                            .num_results = num_results.data()};
    const auto most = static_cast<std::size_t>(max_results(beams));
    Results found = {.items = std::vector<std::int64_t>(most),
                     .semantic_ids = std::vector<std::int32_t>(2 * most),
                     .logprobs = std::vector<float>(most),
                     .legal = {},
                     .offsets = std::vector<std::int64_t>(num_results.size() + 1)};
    const auto legal = std::make_unique<bool[]>(most);
    onerec::expand(beams, catalogue.index(),
                   {.items = found.items.data(),
                    .semantic_ids = found.semantic_ids.data(),
                    .logprobs = found.logprobs.data(),
                    .legal = legal.get(),
                    .offsets = found.offsets.data()});
    const auto count = static_cast<std::size_t>(found.offsets.back());
    found.items.resize(count);
    found.semantic_ids.resize(2 * count);
    found.logprobs.resize(count);
    found.legal.assign(legal.get(), legal.get() + count);
    return found;
  }
};

using Ids = std::vector<std::int64_t>;

TEST(Expansion, GivesTheItemsOfASemanticIdByAscendingIdAndStopsAtWhatIsWanted) {
  Beams beams;
  beams.beam(-1, 3, 0, 2);
  beams.beam(-2, 0, 1, 0);
  beams.beam(-3, 0, 2, 1);
  beams.request(true, 4);
  const Results found = beams.expand();
  EXPECT_EQ(found.items, (Ids{5, 25, 40, 10}));
  EXPECT_EQ(found.semantic_ids, (std::vector<std::int32_t>{3, 0, 3, 0, 3, 0, 0, 1}));
  EXPECT_EQ(found.logprobs, (std::vector<float>{-1, -1, -1, -2}));
  EXPECT_EQ(found.legal, (std::vector<bool>{true, true, true, true}));
  EXPECT_EQ(found.offsets, (Ids{0, 4}));
}

TEST(Expansion, GivesFewerThanWantedWhereBeamsAreDeadOrItemsExcluded) {
  Beams beams;
  beams.beam(-1, 0, 1, 0);
  beams.beam(kDead, 3, 0, 2);
  beams.beam(-4, 0, 2, 1);
  beams.beam(-5, 0, 0, -1);
  beams.request(true, 10, {1, 2});  // the positions of 30 and 20
  const Results found = beams.expand();
  EXPECT_EQ(found.items, (Ids{10}));
  EXPECT_EQ(found.offsets, (Ids{0, 1}));
}

TEST(Expansion, ExcludedItemsDoNotCount) {
  Beams beams;
  beams.beam(-1, 3, 0, 2);
  beams.beam(-2, 0, 1, 0);
  beams.request(true, 2, {0, 3, 5});  // the positions of 10, 5 and 40
  EXPECT_EQ(beams.expand().items, (Ids{25, 30}));
}

TEST(Expansion, LooksBehindAnyNumberOfExcludedAndDeadBeams) {
  Beams beams;
  for (int i = 0; i < 200; ++i) {
    beams.beam(i % 3 == 0 ? kDead : -1, 0, 2, 1);
    beams.beam(-1, 3, 0, 2);
  }
  beams.beam(-2, 0, 1, 0);
  beams.request(true, 2, {2, 3, 4, 5});  // all items of the leaves 1 and 2
  EXPECT_EQ(beams.expand().items, (Ids{10, 30}));
}

TEST(Expansion, StopsAtWhatIsWantedOfManyBeams) {
  Beams beams;
  for (int i = 0; i < 200; ++i) beams.beam(-static_cast<float>(i), 0, 1, 0);
  beams.request(true, 301);
  const Results found = beams.expand();
  ASSERT_EQ(found.items.size(), 301U);
  for (std::size_t i = 0; i < found.items.size(); ++i) {
    EXPECT_EQ(found.items[i], i % 2 == 0 ? 10 : 30);
    EXPECT_EQ(found.logprobs[i], -static_cast<float>(i / 2));
  }
}

TEST(Expansion, ARequestExcludesForItselfAlone) {
  Beams beams;
  beams.beam(-1, 0, 2, 1);
  beams.request(true, 1, {2});
  beams.beam(-1, 0, 2, 1);
  beams.request(true, 1);
  const Results found = beams.expand();
  EXPECT_EQ(found.items, (Ids{20}));
  EXPECT_EQ(found.offsets, (Ids{0, 0, 1}));
}

TEST(Expansion, SearchesWithoutTheTrieFindItemsByTheirCodes) {
  Beams beams;
  beams.beam(-1, 9, 9, 0);
  beams.beam(-2, 3, 0, 0);
  beams.beam(kDead, 0, 1, 0);
  beams.beam(-3, 0, 0, 0);
  beams.beam(-4, 0, 2, 0);
  beams.request(false, 10, {3, 4, 5});  // (3, 0) has no other items
  const Results found = beams.expand();
  EXPECT_EQ(found.items, (Ids{kNoItem, kNoItem, 20}));
  EXPECT_EQ(found.legal, (std::vector<bool>{false, false, true}));
  EXPECT_EQ(found.semantic_ids, (std::vector<std::int32_t>{9, 9, 0, 0, 0, 2}));
}

TEST(Expansion, AnyIdMayBeAnItems) {
  const IndexedItems items({kNoItem}, {{0, 1}});
  Beams beams;
  beams.beam(-1, 0, 1, 0);
  beams.beam(-2, 3, 3, 0);
  beams.request(false, 2);
  const Results found = beams.expand(items);
  EXPECT_EQ(found.items, (Ids{kNoItem, kNoItem}));
  EXPECT_EQ(found.legal, (std::vector<bool>{true, false}));
}

TEST(Expansion, TakesNoRequestsAndRequestsWithoutBeams) {
  Beams beams;
  EXPECT_EQ(beams.expand().offsets, (Ids{0}));
  beams.request(true, 3);
  beams.beam(kDead, 0, 1, 0);
  beams.request(false, 3);
  const Results found = beams.expand();
  EXPECT_TRUE(found.items.empty());
  EXPECT_EQ(found.offsets, (Ids{0, 0, 0}));
}

TEST(Expansion, RefusesLeavesThatTheCatalogueDoesNotHave) {
  Beams beams;
  beams.beam(-1, 0, 0, 3);
  beams.request(true, 1);
  EXPECT_THROW(beams.expand(), InternalError);
}

TEST(FindId, FindsEveryIdAndNoOther) {
  const std::int64_t low = std::numeric_limits<std::int64_t>::min();
  const std::int64_t high = std::numeric_limits<std::int64_t>::max();
  for (const Ids& ids : {Ids{}, Ids{7}, Ids{4, 5, 6, 7}, Ids{-9, 0, 1, 2, 40}, Ids{low, -1, 0, high}, Ids{low, low + 1},
                         Ids{high - 2, high - 1, high}}) {
    const auto count = static_cast<std::int64_t>(ids.size());
    std::vector<std::int64_t> asked = {low, low + 2, -1, 3, 8, 39, 41, high - 3, high};
    asked.insert(asked.end(), ids.begin(), ids.end());
    for (const std::int64_t id : asked) {
      const std::int64_t at = find_id(ids.data(), count, id);
      const bool known = std::find(ids.begin(), ids.end(), id) != ids.end();
      ASSERT_EQ(at >= 0, known) << id;
      if (known) {
        EXPECT_EQ(ids[static_cast<std::size_t>(at)], id);
      }
    }
  }
}

}  // namespace
}  // namespace onerec
