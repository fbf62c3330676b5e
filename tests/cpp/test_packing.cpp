// Requests to a run's arrays, over a catalogue small enough to write the answers down.
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "core/error.h"
#include "engine/packing.h"
#include "support/item_index.h"

namespace onerec {
namespace {

using Ids = std::vector<std::int64_t>;
using Ints = std::vector<std::int32_t>;

// By trie position: 20, 40, 10, 30, 50.
const IndexedItems& small_catalogue() {
  static const IndexedItems items({10, 20, 30, 40, 50}, {{1, 0}, {0, 0}, {1, 0}, {0, 1}, {2, 2}});
  return items;
}

// A list of ids per request.
struct Lists {
  Ids ids;
  Ids offsets = {0};

  void add(const Ids& more) {
    ids.insert(ids.end(), more.begin(), more.end());
    offsets.push_back(static_cast<std::int64_t>(ids.size()));
  }
  ItemLists view() const {
    return {.count = static_cast<std::int64_t>(ids.size()), .ids = ids.data(), .offsets = offsets.data()};
  }
};

// Requests of a model with a static pathway (an age), the history by recency (an action and two numbers per item), and
// another list of items by age.
struct Requests {
  Lists history, other, exclude;
  Ids ages, actions;
  std::vector<float> numbers;
  Ids widths;
  std::vector<std::uint8_t> constrained, exclude_history;

  void add(const Ids& items, const Ids& others = {}, const Ids& excluded = {}, bool excludes_history = false) {
    for (std::size_t i = 0; i < items.size(); ++i) {
      const auto id = static_cast<std::int64_t>(actions.size());
      actions.push_back(100 + id);
      numbers.insert(numbers.end(), {static_cast<float>(id), -static_cast<float>(id)});
    }
    ages.push_back(7 + static_cast<std::int64_t>(ages.size()));
    history.add(items);
    other.add(others);
    exclude.add(excluded);
    widths.insert(widths.end(), {9, 9});
    constrained.push_back(1);
    exclude_history.push_back(excludes_history);
  }

  RequestArrays arrays() const {
    return {
        .size = static_cast<std::int64_t>(ages.size()),
        .sources = {history.view(), other.view()},
        .exclude = exclude.view(),
        .features = {{{.categorical = ages.data()}}, {{.categorical = actions.data()}, {.dense = numbers.data()}}, {}},
        .widths = widths.data(),
        .constrained = constrained.data(),
        .exclude_history = exclude_history.data()};
  }
};

const PackingRules& rules() {
  static const PackingRules rules = {
      .pathways = {{.source = PathwayPacking::kStatic, .fields = {0}},
                   {.source = 0, .max_tokens = 3, .positions = PositionOrder::kNewestFirst, .fields = {0, 2}},
                   {.source = 1, .max_tokens = 2, .positions = PositionOrder::kOldestFirst, .fields = {}}},
      .num_sources = 2,
      .max_widths = {3, 5},
      .max_free_widths = {4, 8}};
  return rules;
}

struct RunValues {
  struct Pathway {
    Ints codes, positions, rows, categorical;
    std::vector<float> dense;
  };
  std::vector<Pathway> pathways;
  Ints context_offsets, widths, excluded, excluded_offsets;
  std::vector<std::uint8_t> constrained;
};

RunValues write(const PackedRequests& packed, const Ids& chosen) {
  const auto count = static_cast<std::int64_t>(chosen.size());
  const RunSizes sizes = packed.measure(chosen.data(), count);
  RunValues run;
  RunArrays to;
  for (std::size_t p = 0; p < sizes.tokens.size(); ++p) {
    const auto tokens = static_cast<std::size_t>(sizes.tokens[p]);
    const PathwayPacking& pathway = rules().pathways[p];
    run.pathways.push_back({.codes = Ints(pathway.source < 0 ? 0 : 2 * tokens),
                            .positions = Ints(tokens),
                            .rows = Ints(tokens),
                            .categorical = Ints(tokens * static_cast<std::size_t>(pathway.num_categorical())),
                            .dense = std::vector<float>(tokens * static_cast<std::size_t>(pathway.dense_columns()))});
  }
  for (auto& pathway : run.pathways) {
    to.pathways.push_back({pathway.codes.data(), pathway.positions.data(), pathway.rows.data(),
                           pathway.categorical.data(), pathway.dense.data()});
  }
  run.context_offsets.resize(chosen.size() + 1);
  run.widths.resize(2 * chosen.size());
  run.excluded.resize(static_cast<std::size_t>(sizes.excluded));
  run.excluded_offsets.resize(chosen.size() + 1);
  run.constrained.resize(chosen.size());
  to.context_offsets = run.context_offsets.data();
  to.widths = run.widths.data();
  to.excluded = run.excluded.data();
  to.excluded_offsets = run.excluded_offsets.data();
  to.constrained = run.constrained.data();
  packed.write(chosen.data(), count, to);
  return run;
}

TEST(Packing, KeepsTheNewestKnownItemsWithTheirFeatures) {
  Requests requests;
  requests.add({20, 99, 10, 40, 98, 50}, {30, -1, 20, 20});
  const ItemIndex index = small_catalogue().index();
  const PackedRequests packed(requests.arrays(), rules(), index);
  EXPECT_EQ(packed.context_sizes(), (Ids{6}));
  EXPECT_EQ(packed.unknown(), (Ids{3}));
  EXPECT_EQ(packed.truncated(), (Ids{2}));
  const RunValues run = write(packed, {0});
  EXPECT_EQ(run.context_offsets, (Ints{0, 6}));
  EXPECT_EQ(run.pathways[0].categorical, (Ints{7}));
  EXPECT_EQ(run.pathways[0].rows, (Ints{0}));
  EXPECT_EQ(run.pathways[1].codes, (Ints{1, 0, 0, 1, 2, 2}));
  EXPECT_EQ(run.pathways[1].positions, (Ints{2, 1, 0}));
  EXPECT_EQ(run.pathways[1].rows, (Ints{1, 2, 3}));
  EXPECT_EQ(run.pathways[1].categorical, (Ints{102, 103, 105}));
  EXPECT_EQ(run.pathways[1].dense, (std::vector<float>{2, -2, 3, -3, 5, -5}));
  EXPECT_EQ(run.pathways[2].codes, (Ints{0, 0, 0, 0}));
  EXPECT_EQ(run.pathways[2].positions, (Ints{0, 1}));
  EXPECT_EQ(run.pathways[2].rows, (Ints{4, 5}));
}

TEST(Packing, EmptyHistoriesHaveStaticTokensAlone) {
  Requests requests;
  requests.add({});
  requests.add({99}, {97});
  const ItemIndex index = small_catalogue().index();
  const PackedRequests packed(requests.arrays(), rules(), index);
  EXPECT_EQ(packed.context_sizes(), (Ids{1, 1}));
  EXPECT_EQ(packed.unknown(), (Ids{0, 2}));
  const RunValues run = write(packed, {0, 1});
  EXPECT_EQ(run.context_offsets, (Ints{0, 1, 2}));
  EXPECT_EQ(run.pathways[0].categorical, (Ints{7, 8}));
  EXPECT_TRUE(run.pathways[1].codes.empty());
  EXPECT_EQ(run.excluded_offsets, (Ints{0, 0, 0}));
}

TEST(Packing, ExcludesPositionsOnceAndInOrder) {
  Requests requests;
  requests.add({50, 10, 50, 20, 40, 99}, {}, {30, 98, 10}, true);
  requests.add({50}, {}, {20, 20});
  const ItemIndex index = small_catalogue().index();
  const PackedRequests packed(requests.arrays(), rules(), index);
  const RunValues run = write(packed, {0, 1});
  EXPECT_EQ(run.excluded, (Ints{0, 1, 2, 3, 4, 0}));
  EXPECT_EQ(run.excluded_offsets, (Ints{0, 5, 6}));
  EXPECT_EQ(packed.excluded_offsets(), (Ids{0, 5, 6}));
}

TEST(Packing, RunsHaveTheRequestsChosenInThatOrder) {
  Requests requests;
  requests.add({10});
  requests.add({20, 40}, {}, {50});
  requests.add({}, {30});
  requests.constrained[1] = 0;
  const ItemIndex index = small_catalogue().index();
  const PackedRequests packed(requests.arrays(), rules(), index);
  const RunValues run = write(packed, {2, 1, 1});
  EXPECT_EQ(run.context_offsets, (Ints{0, 2, 5, 8}));
  EXPECT_EQ(run.pathways[0].categorical, (Ints{9, 8, 8}));
  EXPECT_EQ(run.pathways[0].rows, (Ints{0, 2, 5}));
  EXPECT_EQ(run.pathways[1].rows, (Ints{3, 4, 6, 7}));
  EXPECT_EQ(run.pathways[2].rows, (Ints{1}));
  EXPECT_EQ(run.widths, (Ints{3, 5, 4, 8, 4, 8}));
  EXPECT_EQ(run.constrained, (std::vector<std::uint8_t>{1, 0, 0}));
  EXPECT_EQ(run.excluded, (Ints{4, 4}));
  const std::int64_t wrong = 3;
  EXPECT_THROW(packed.measure(&wrong, 1), ArgumentError);
}

TEST(Packing, TakesNoRequests) {
  const Requests requests;
  const ItemIndex index = small_catalogue().index();
  const PackedRequests packed(requests.arrays(), rules(), index);
  EXPECT_EQ(write(packed, {}).context_offsets, (Ints{0}));
}

TEST(Packing, RefusesOffsetsThatLeaveTheirIds) {
  const ItemIndex index = small_catalogue().index();
  for (const Ids& offsets : {Ids{0, 2, 1}, Ids{0, 3, 2}, Ids{0, 1, 3}, Ids{-1, 0, 2}}) {
    Requests requests;
    requests.add({10});
    requests.add({20});
    requests.history.offsets = offsets;
    EXPECT_THROW(PackedRequests(requests.arrays(), rules(), index), ArgumentError);
  }
}

}  // namespace
}  // namespace onerec
