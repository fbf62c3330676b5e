// The catalogue's trie against the sorted list of tuples it stands for.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "backends/cpu/cpu_backend.h"
#include "core/error.h"
#include "engine/item_trie.h"
#include "support/device.h"

namespace onerec {
namespace {

using Tuple = std::vector<std::int32_t>;

std::vector<std::int32_t> flatten(const std::vector<Tuple>& tuples) {
  std::vector<std::int32_t> flat;
  for (const auto& tuple : tuples) flat.insert(flat.end(), tuple.begin(), tuple.end());
  return flat;
}

// Walks every path of the device table and lists (tuple, items below) per leaf.
std::vector<std::pair<Tuple, std::vector<std::int64_t>>> walk(const ItemTrie& trie) {
  std::vector<std::pair<Tuple, std::vector<std::int64_t>>> leaves;
  const TrieTable& table = *trie.table();
  const auto descend = [&](auto&& self, int level, std::int32_t node, const Tuple& prefix) -> void {
    const TrieLevel& here = table.level[static_cast<std::size_t>(level)];
    for (std::int32_t e = here.row_ptr[node]; e < here.row_ptr[node + 1]; ++e) {
      Tuple tuple = prefix;
      tuple.push_back(here.code[e]);
      if (level + 1 < table.levels) {
        self(self, level + 1, e, tuple);
        continue;
      }
      std::vector<std::int64_t> items;
      for (std::int32_t p = here.item_begin[e]; p < here.item_begin[e + 1]; ++p) {
        items.push_back(trie.order()[static_cast<std::size_t>(p)]);
      }
      leaves.emplace_back(tuple, items);
    }
  };
  descend(descend, 0, 0, {});
  return leaves;
}

TEST(ItemTrie, ListsEveryTupleWithItsItemsInTheOrderGiven) {
  ONEREC_CPU_ONLY();
  cpu::CpuDevice device(1);
  std::mt19937 random(7);
  for (const int levels : {1, 2, 3, 8}) {
    for (const std::int64_t items : {1, 2, 17, 400}) {
      const std::int32_t codebook = levels == 1 ? 37 : 5;
      std::vector<Tuple> tuples(static_cast<std::size_t>(items), Tuple(static_cast<std::size_t>(levels)));
      std::map<Tuple, std::vector<std::int64_t>> want;
      for (std::int64_t i = 0; i < items; ++i) {
        Tuple& tuple = tuples[static_cast<std::size_t>(i)];
        for (auto& code : tuple) code = static_cast<std::int32_t>(random() % static_cast<std::uint32_t>(codebook));
        want[tuple].push_back(i);
      }
      const ItemTrie trie(flatten(tuples).data(), items,
                          std::vector<std::int64_t>(static_cast<std::size_t>(levels), codebook), device);
      const auto leaves = walk(trie);
      ASSERT_EQ(leaves.size(), want.size());
      EXPECT_TRUE(std::equal(leaves.begin(), leaves.end(), want.begin(), [](const auto& leaf, const auto& entry) {
        return leaf.first == entry.first && leaf.second == entry.second;
      }));
      ASSERT_EQ(trie.leaf_items().size(), want.size() + 1);
      EXPECT_EQ(trie.leaf_items().back(), items);
      EXPECT_EQ(trie.edges(levels - 1), static_cast<std::int64_t>(want.size()));
    }
  }
}

TEST(ItemTrie, ItemRangesOfInnerEdgesCoverTheirLeaves) {
  ONEREC_CPU_ONLY();
  cpu::CpuDevice device(1);
  const std::vector<Tuple> tuples = {{2, 0}, {0, 1}, {2, 0}, {0, 0}, {2, 3}};
  const ItemTrie trie(flatten(tuples).data(), 5, {3, 4}, device);
  const TrieLevel& first = trie.table()->level[0];
  ASSERT_EQ(trie.edges(0), 2);
  EXPECT_EQ(std::vector<std::int32_t>(first.item_begin, first.item_begin + 3), (std::vector<std::int32_t>{0, 2, 5}));
  EXPECT_EQ(trie.order(), (std::vector<std::int64_t>{3, 1, 0, 2, 4}));
}

TEST(ItemTrie, RefusesCodesOutsideTheCodebookAndEmptyCatalogues) {
  ONEREC_CPU_ONLY();
  cpu::CpuDevice device(1);
  const std::vector<std::int32_t> codes = {0, 4};
  EXPECT_THROW(ItemTrie(codes.data(), 1, {4, 4}, device), ArgumentError);
  EXPECT_THROW(ItemTrie(codes.data(), 0, {4, 5}, device), ArgumentError);
}

}  // namespace
}  // namespace onerec
