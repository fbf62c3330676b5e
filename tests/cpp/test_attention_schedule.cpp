// Who does which part of the tensor-core cross-attention.
#include "backends/cuda/kernels/attention_layout.cuh"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <set>
#include <utility>
#include <vector>

#include "support/tensors.h"

namespace onerec::cuda::kernels {
namespace {

using test::Random;
using test::uniform;

TEST(AttentionSchedule, SplitsCoverTheTilesOnce) {
  for (int splits = 1; splits <= 16; ++splits) {
    for (int tiles = 0; tiles <= 70; ++tiles) {
      int next = 0;
      for (int split = 0; split < splits; ++split) {
        const TileRange range = split_tiles(tiles, splits, split);
        EXPECT_EQ(range.begin, next);
        EXPECT_LE(range.end - range.begin, (tiles + splits - 1) / splits);
        next = range.end;
      }
      EXPECT_EQ(next, tiles);
    }
  }
}

TEST(AttentionSchedule, QueriesOfAGroupAreItsHeadsRowByRow) {
  const AttentionQuery query = query_at(100, 2, 7, 7 * 3 + 5);
  EXPECT_EQ(query.row, 103);
  EXPECT_EQ(query.head, 2 * 7 + 5);
  EXPECT_EQ(query_at(0, 13, 1, 511).row, 511);
  EXPECT_EQ(query_at(0, 13, 1, 511).head, 13);
}

TEST(AttentionSchedule, DividesByAMultiplication) {
  for (int divisor = 1; divisor <= kWarpgroupRows; ++divisor) {
    for (int index = 0; index < kWarpgroupRows; ++index) {
      EXPECT_EQ(divide_small(index, small_reciprocal(divisor)), index / divisor) << index << " / " << divisor;
    }
  }
}

TEST(AttentionSchedule, FewBlocksHaveOneWarpgroupEach) {
  EXPECT_EQ(choose_warpgroups(80, 4, 132), 1);
  EXPECT_EQ(choose_warpgroups(133, 4, 132), 2) << "they would not run side by side";
  EXPECT_EQ(choose_warpgroups(80, 5, 132), 2) << "the context is split instead";
  EXPECT_EQ(choose_splits(80, 4, 132), 1);
}

TEST(AttentionSchedule, BlocksDoAllOfTheWorkOnce) {
  Random random(3);
  for (int round = 0; round < 200; ++round) {
    const int requests = static_cast<int>(uniform(random, 1, 5));
    const int largest = static_cast<int>(uniform(random, 1, 300));
    std::vector<std::int32_t> rows = {0}, tokens = {static_cast<std::int32_t>(uniform(random, 0, 9))};
    for (int b = 0; b < requests; ++b) {
      rows.push_back(rows.back() + static_cast<std::int32_t>(uniform(random, 0, largest)));
      tokens.push_back(tokens.back() + static_cast<std::int32_t>(uniform(random, 0, 900)));
    }
    const int group_heads = static_cast<int>(uniform(random, 1, kWarpgroupRows));
    const int warpgroup_rows = rows_of_warpgroup(group_heads);
    AttentionSchedule schedule{.requests = requests,
                               .groups = static_cast<int>(uniform(random, 1, 3)),
                               .splits = static_cast<int>(uniform(random, 1, 4)),
                               .paired = uniform(random, 0, 1) == 0,
                               .warpgroup_rows = warpgroup_rows,
                               .tile_rows = static_cast<int>(uniform(random, 1, kFlashWarpgroups)) * warpgroup_rows,
                               .tile_tokens = 16 * static_cast<int>(uniform(random, 4, 16))};
    schedule.row_tiles = (largest + schedule.tile_rows - 1) / schedule.tile_rows;
    schedule.items = requests * schedule.groups * schedule.splits * schedule.row_tiles;

    std::set<std::array<int, 4>> done;  // row, group, split, first token of a tile; -1 without tiles
    const int blocks = static_cast<int>(uniform(random, 1, 20));
    for (int block = 0; block < blocks; ++block) {
      for (int index = block; index < schedule.items; index += blocks) {
        const AttentionItem item = item_at(schedule, index, rows.data(), tokens.data());
        EXPECT_LE(item.rows, schedule.tile_rows);
        EXPECT_EQ(live_rows(item, 0, warpgroup_rows) + live_rows(item, 1, warpgroup_rows), item.rows);
        for (int row = item.first_row; row < item.first_row + item.rows; ++row) {
          for (int tile = 0; tile < std::max(item.tiles, 1); ++tile) {
            const int token = item.tiles == 0 ? -1 : item.last_token - tile * schedule.tile_tokens;
            EXPECT_TRUE(done.insert({row, item.group, item.split, token}).second);
          }
        }
        if (item.rows == 0 || item.tiles == 0) continue;
        const int request = index / (schedule.items / requests);
        EXPECT_GE(item.first_row, rows[request]);
        EXPECT_LE(item.first_row + item.rows, rows[request + 1]);
        EXPECT_GE(item.last_token - (item.tiles - 1) * schedule.tile_tokens, tokens[request]);
        EXPECT_LE(item.last_token + item.last_tokens, tokens[request + 1]);
        EXPECT_EQ((item.last_token - tokens[request]) % schedule.tile_tokens, 0);
        EXPECT_GT(item.last_tokens, 0);
        EXPECT_TRUE(item.last_tokens == schedule.tile_tokens ||
                    item.last_token + item.last_tokens == tokens[request + 1]);
      }
    }

    std::size_t wanted = 0;
    for (int b = 0; b < requests; ++b) {
      const int tiles = (tokens[b + 1] - tokens[b] + schedule.tile_tokens - 1) / schedule.tile_tokens;
      for (int split = 0; split < schedule.splits; ++split) {
        const TileRange range = split_tiles(tiles, schedule.splits, split);
        wanted +=
            static_cast<std::size_t>(rows[b + 1] - rows[b]) * schedule.groups * std::max(range.end - range.begin, 1);
      }
    }
    EXPECT_EQ(done.size(), wanted);
  }
}

TEST(AttentionSchedule, APairHasTheSplitsOfTheSameQueries) {
  const std::array<std::int32_t, 4> rows = {0, 40, 41, 300}, tokens = {0, 128, 128, 1000};
  AttentionSchedule schedule{.requests = 3,
                             .groups = 2,
                             .splits = 2,
                             .paired = true,
                             .row_tiles = 3,
                             .warpgroup_rows = 64,
                             .tile_rows = 128,
                             .tile_tokens = 128,
                             .items = 3 * 2 * 2 * 3};
  for (int index = 0; index < schedule.items; index += 2) {
    const AttentionItem first = item_at(schedule, index, rows.data(), tokens.data());
    const AttentionItem second = item_at(schedule, index + 1, rows.data(), tokens.data());
    EXPECT_EQ(first.split, 0);
    EXPECT_EQ(second.split, 1);
    EXPECT_EQ(first.first_row, second.first_row);
    EXPECT_EQ(first.rows, second.rows);
    EXPECT_EQ(first.group, second.group);
    EXPECT_EQ(first.all_tiles, second.all_tiles);
    EXPECT_EQ(first.tiles + second.tiles, first.all_tiles);
    for (int warpgroup = 0; warpgroup < kFlashWarpgroups; ++warpgroup) {
      EXPECT_NE(finishes(first, warpgroup), finishes(second, warpgroup));
    }
  }
}

TEST(AttentionSchedule, SplitsOnlyWhereMultiprocessorsWouldIdle) {
  EXPECT_EQ(choose_splits(448, 24, 132), 1);  // enough blocks
  EXPECT_EQ(choose_splits(106, 24, 132), 1);
  EXPECT_EQ(choose_splits(56, 4, 132), 1);   // few tiles
  EXPECT_EQ(choose_splits(56, 24, 132), 2);  // 112 blocks of 12 tiles
  EXPECT_EQ(choose_splits(50, 6, 132), 2);
  EXPECT_EQ(choose_splits(14, 24, 132), 8);  // 112 blocks of 3
  EXPECT_EQ(choose_splits(0, 24, 132), 1);
  for (const std::int64_t blocks : {1, 2, 14, 30, 56, 80, 105}) {
    for (const std::int64_t tiles : {0, 1, 5, 8, 24, 100}) {
      const int splits = choose_splits(blocks, tiles, 132);
      EXPECT_GE(splits, 1);
      EXPECT_LE(splits, std::max<std::int64_t>(tiles, 1));
    }
  }
}

}  // namespace
}  // namespace onerec::cuda::kernels
