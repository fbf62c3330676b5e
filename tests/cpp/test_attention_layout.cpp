// The index arithmetic of the tensor-core cross-attention against the rules of the hardware, on the host.
#include "backends/cuda/kernels/attention_layout.cuh"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <functional>
#include <set>
#include <utility>
#include <vector>

#include "core/bfloat16.h"
#include "support/tensors.h"

namespace onerec::cuda::kernels {
namespace {

using test::Random;
using test::uniform;

constexpr int kTileRows = 128;

// The copy engine's 128-byte swizzle: bits 4 to 6 of an address change with bits 7 to 9.
int swizzled(int offset) { return offset ^ ((offset >> 3) & 0x70); }

TEST(AttentionLayout, ChunksAreWhereTheCopyEnginePutsThem) {
  for (const int rows : {kWarpgroupRows, kTileRows}) {
    for (const int head_dim : {64, 128}) {
      std::set<int> taken;
      for (int row = 0; row < rows; ++row) {
        for (int chunk = 0; chunk < head_dim / kChunkColumns; ++chunk) {
          const int panel = chunk / kPanelChunks * rows * kPanelRowBytes;
          const int offset = chunk_offset(rows, row, chunk);
          EXPECT_EQ(offset, panel + swizzled(row * kPanelRowBytes + chunk % kPanelChunks * kChunkBytes));
          EXPECT_EQ((offset - panel) / kPanelRowBytes, row);
          taken.insert(offset);
        }
      }
      EXPECT_EQ(static_cast<int>(taken.size()), rows * head_dim / kChunkColumns);
      EXPECT_EQ(*taken.rbegin(), rows * head_dim * 2 - kChunkBytes);
    }
  }
}

TEST(AttentionLayout, ARowOfAnAccumulatorBelongsToFourLanes) {
  std::set<std::pair<int, int>> places;
  for (int thread = 0; thread < kWarpgroup; ++thread) {
    for (int element = 0; element < kTileRows / 2; ++element) {
      const int row = accumulator_row(thread, element);
      EXPECT_EQ(row, accumulator_row(thread ^ 1, element));
      EXPECT_EQ(row, accumulator_row(thread ^ 2, element));
      EXPECT_EQ(row / 16, thread / 32);
      EXPECT_EQ(row, accumulator_row(thread, 2 * row_half(element)));
      places.emplace(row, accumulator_column(thread, element));
    }
  }
  EXPECT_EQ(static_cast<int>(places.size()), kWarpgroupRows * kTileRows);
  EXPECT_EQ(*places.begin(), std::pair(0, 0));
  EXPECT_EQ(*places.rbegin(), std::pair(kWarpgroupRows - 1, kTileRows - 1));
}

// A left-hand side of 64 x 16 in registers, from the description of wgmma in the PTX manual: register i holds two
// columns of row groupID (i even) or groupID + 8 (i odd), the upper eight columns from i = 2 on.
std::pair<int, int> left_hand_place(int thread, int value) {
  const int group = thread % 32 / 4;
  const int reg = value / 2;
  const int row = thread / 32 * 16 + group + (reg % 2 == 0 ? 0 : 8);
  const int column = thread % 4 * 2 + value % 2 + (reg < 2 ? 0 : 8);
  return {row, column};
}

TEST(AttentionLayout, AccumulatorsAreALeftHandSideAsTheyLie) {
  for (int thread = 0; thread < kWarpgroup; ++thread) {
    for (int element = 0; element < kTileRows / 2; ++element) {
      const auto [row, column] = left_hand_place(thread, element % 8);
      EXPECT_EQ(accumulator_row(thread, element), row);
      EXPECT_EQ(accumulator_column(thread, element), element / 8 * 16 + column);
    }
  }
}

// --- one warpgroup, thread by thread, over a context whose last tile is not full ---

constexpr int kHeadDim = 64;
using Tile = std::vector<unsigned char>;

void put(Tile& tile, int rows, int row, int column, float value) {
  const BFloat16 rounded = to_bfloat16(value);
  std::memcpy(tile.data() + chunk_offset(rows, row, column / kChunkColumns) + column % kChunkColumns * 2, &rounded, 2);
}

float get(const Tile& tile, int rows, int row, int column) {
  BFloat16 value;
  std::memcpy(&value, tile.data() + chunk_offset(rows, row, column / kChunkColumns) + column % kChunkColumns * 2, 2);
  return to_float(value);
}

struct Warpgroup {
  static constexpr int kScores = kTileRows / 2;
  static constexpr int kSums = kHeadDim / 2;
  std::array<std::array<float, kScores>, kWarpgroup> scores = {};
  std::array<std::array<float, kSums>, kWarpgroup> sums = {};
  std::array<std::array<float, 2>, kWarpgroup> largest = {};
  std::array<std::array<float, 2>, kWarpgroup> total = {};

  Warpgroup() {
    for (auto& halves : largest) halves.fill(-INFINITY);
  }

  void multiply_keys(const Tile& queries, const Tile& keys) {
    for (int t = 0; t < kWarpgroup; ++t) {
      for (int e = 0; e < kScores; ++e) {
        float sum = 0.0f;
        for (int d = 0; d < kHeadDim; ++d) {
          sum += get(queries, kWarpgroupRows, accumulator_row(t, e), d) *
                 get(keys, kTileRows, accumulator_column(t, e), d);
        }
        scores[t][e] = sum;
      }
    }
  }

  void mask(int columns) {
    for (int t = 0; t < kWarpgroup; ++t) {
      for (int e = 0; e < kScores; ++e) {
        if (accumulator_column(t, e) >= columns) scores[t][e] = -INFINITY;
      }
    }
  }

  void advance() {
    const auto before = largest;
    for (int t = 0; t < kWarpgroup; ++t) {
      for (int lane = 0; lane < 4; ++lane) {
        const int other = t / 4 * 4 + lane;
        for (int e = 0; e < kScores; ++e) {
          float& most = largest[t][row_half(e)];
          most = std::fmax(most, scores[other][e]);
        }
      }
    }
    for (int t = 0; t < kWarpgroup; ++t) {
      for (int half = 0; half < 2; ++half) {
        const float shrink = std::exp(before[t][half] - largest[t][half]);
        total[t][half] *= shrink;
        for (int e = 0; e < kSums; ++e) {
          if (row_half(e) == half) sums[t][e] *= shrink;
        }
      }
      for (float& score : scores[t]) {
        const int half = row_half(static_cast<int>(&score - scores[t].data()));
        score = std::exp(score - largest[t][half]);
        total[t][half] += score;
      }
    }
  }

  // The tensor core takes the numerators as a left-hand side, 16 columns at a time.
  void multiply_values(const Tile& values) {
    std::vector<float> numerators(kWarpgroupRows * kTileRows);
    for (int t = 0; t < kWarpgroup; ++t) {
      for (int e = 0; e < kScores; ++e) {
        const auto [row, column] = left_hand_place(t, e % 8);
        numerators[row * kTileRows + e / 8 * 16 + column] = to_float(to_bfloat16(scores[t][e]));
      }
    }
    for (int t = 0; t < kWarpgroup; ++t) {
      for (int e = 0; e < kSums; ++e) {
        for (int n = 0; n < kTileRows; ++n) {
          sums[t][e] +=
              numerators[accumulator_row(t, e) * kTileRows + n] * get(values, kTileRows, n, accumulator_column(t, e));
        }
      }
    }
  }

  float result(int t, int e) const {
    float denominator = 0.0f;
    for (int lane = 0; lane < 4; ++lane) denominator += total[t / 4 * 4 + lane][row_half(e)];
    return sums[t][e] / denominator;
  }
};

TEST(AttentionLayout, AWarpgroupAttendsToAContextWithAnEnd) {
  Random random(1);
  constexpr int kTokens = kTileRows + 37;
  std::vector<std::array<float, kHeadDim>> context(kTokens);
  for (auto& token : context) {
    for (float& value : token) value = to_float(to_bfloat16(test::normal(random)));
  }
  Tile queries(kWarpgroupRows * kHeadDim * 2);
  for (int row = 0; row < kWarpgroupRows; ++row) {
    for (int d = 0; d < kHeadDim; ++d) put(queries, kWarpgroupRows, row, d, 0.125f * test::normal(random));
  }

  Warpgroup warpgroup;
  const TileRange tiles = split_tiles((kTokens + kTileRows - 1) / kTileRows, 1, 0);
  for (int tile = tiles.end - 1; tile >= tiles.begin; --tile) {
    Tile keys(kTileRows * kHeadDim * 2);
    const int live = std::min(kTokens - tile * kTileRows, kTileRows);
    for (int n = 0; n < kTileRows; ++n) {
      for (int d = 0; d < kHeadDim; ++d) {
        put(keys, kTileRows, n, d, n < live ? context[tile * kTileRows + n][d] : std::nanf(""));
      }
    }
    warpgroup.multiply_keys(queries, keys);
    warpgroup.mask(live);
    for (int n = live; n < kTileRows; ++n) {
      for (int chunk = 0; chunk < kHeadDim / kChunkColumns; ++chunk) {
        std::memset(keys.data() + chunk_offset(kTileRows, n, chunk), 0, kChunkBytes);
      }
    }
    warpgroup.advance();
    warpgroup.multiply_values(keys);
  }

  for (int t = 0; t < kWarpgroup; ++t) {
    for (int e = 0; e < Warpgroup::kSums; ++e) {
      double sum = 0, total = 0, magnitude = 0;
      for (const auto& token : context) {
        double score = 0;
        for (int d = 0; d < kHeadDim; ++d) score += get(queries, kWarpgroupRows, accumulator_row(t, e), d) * token[d];
        const double value = token[accumulator_column(t, e)];
        sum += std::exp(score) * value;
        magnitude += std::exp(score) * std::abs(value);
        total += std::exp(score);
      }
      ASSERT_NEAR(warpgroup.result(t, e), sum / total, magnitude / total * 0x1p-8);
    }
  }
}

// --- the ring ---

// A barrier of shared memory: counts arrivals, phases are told apart by their parity.
struct Barrier {
  int wanted = 1;
  int arrived = 0;
  int phase = 0;

  void arrive() {
    if (++arrived == wanted) {
      arrived = 0;
      ++phase;
    }
  }
  // The phase before the first one counts as complete.
  bool passes(std::uint32_t parity) const { return static_cast<std::uint32_t>(phase % 2) != parity; }
};

struct Ring {
  std::vector<Barrier> filled, emptied;
  std::vector<int> content;

  Ring(int stages, int consumers) : filled(stages), emptied(stages, {.wanted = consumers}), content(stages, -1) {}
  int stages() const { return static_cast<int>(content.size()); }

  bool fill(int use) {
    const int stage = ring_stage(use, stages());
    if (!emptied[stage].passes(ring_parity(use, stages()) ^ 1u)) return false;
    content[stage] = use;
    filled[stage].arrive();
    return true;
  }
  bool is_filled(int use) const { return filled[ring_stage(use, stages())].passes(ring_parity(use, stages())); }
  void check(int use) const { ASSERT_EQ(content[ring_stage(use, stages())], use); }
  void release(int use) { emptied[ring_stage(use, stages())].arrive(); }
};

// What a copying thread or a warpgroup does next; false while it has to wait. In the order of flash_attention.cuh.
using Step = std::function<bool()>;

std::vector<Step> copies(Ring& keys, Ring* values, int count) {
  std::vector<Step> steps;
  for (int use = 0; use < count; ++use) {
    steps.push_back([&keys, use] { return keys.fill(use); });
    if (values != nullptr && use > 0) steps.push_back([values, use] { return values->fill(use - 1); });
  }
  if (values != nullptr) steps.push_back([values, count] { return values->fill(count - 1); });
  return steps;
}

std::vector<Step> products(Ring& keys, Ring* separate, int count) {
  Ring* const values = separate == nullptr ? &keys : separate;
  std::vector<Step> steps;
  const auto await = [&](Ring* ring, int use) { steps.push_back([ring, use] { return ring->is_filled(use); }); };
  const auto read = [&](Ring* ring, int use) { steps.push_back([ring, use] { return ring->check(use), true; }); };
  const auto release = [&](Ring* ring, int use) { steps.push_back([ring, use] { return ring->release(use), true; }); };
  await(&keys, 0);
  await(values, 0);
  read(&keys, 0);
  if (separate != nullptr) release(&keys, 0);
  for (int use = 1; use < count; ++use) {
    if (use > 1) release(values, use - 2);
    await(&keys, use);
    await(values, use - 1);
    read(&keys, use);
    read(values, use - 1);
    if (separate != nullptr) release(&keys, use);
  }
  if (count > 1) release(values, count - 2);
  await(values, count - 1);
  read(values, count - 1);
  return steps;
}

TEST(AttentionLayout, TheRingNeitherBlocksNorOverwrites) {
  Random random(2);
  for (int round = 0; round < 400; ++round) {
    const bool separate = round % 2 == 0;
    const int stages = separate ? 2 : 4;
    const int count = static_cast<int>(uniform(random, 1, 13));
    const int consumers = static_cast<int>(uniform(random, 1, 2));
    Ring keys(stages, consumers);
    Ring values(stages, consumers);
    Ring* const own_values = separate ? &values : nullptr;
    std::vector<std::vector<Step>> threads = {copies(keys, own_values, count)};
    for (int i = 0; i < consumers; ++i) threads.push_back(products(keys, own_values, count));
    std::vector<std::size_t> next(threads.size(), 0);
    const auto finished = [&](std::size_t t) { return next[t] == threads[t].size(); };
    while (true) {
      std::vector<std::size_t> waiting;
      for (std::size_t t = 0; t < threads.size(); ++t) {
        if (!finished(t)) waiting.push_back(t);
      }
      if (waiting.empty()) break;
      // Some thread that can go on, beginning the search anywhere.
      const auto start = static_cast<std::size_t>(uniform(random, 0, 100));
      bool moved = false;
      for (std::size_t i = 0; i < waiting.size() && !moved; ++i) {
        const std::size_t t = waiting[(start + i) % waiting.size()];
        moved = threads[t][next[t]]();
        if (moved) ++next[t];
      }
      ASSERT_TRUE(moved) << "all wait, " << count << " tiles";
      ASSERT_FALSE(HasFatalFailure());
    }
  }
}

// --- work ---

TEST(AttentionLayout, SplitsCoverTheTilesOnce) {
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

TEST(AttentionLayout, QueriesOfAGroupAreItsHeadsRowByRow) {
  const AttentionQuery query = query_at(100, 2, 7, 7 * 3 + 5);
  EXPECT_EQ(query.row, 103);
  EXPECT_EQ(query.head, 2 * 7 + 5);
  EXPECT_EQ(query_at(0, 13, 1, 511).row, 511);
  EXPECT_EQ(query_at(0, 13, 1, 511).head, 13);
}

TEST(AttentionLayout, SplitsOnlyWhereMultiprocessorsWouldIdle) {
  EXPECT_EQ(choose_splits(448, 24, 132), 1);  // enough blocks
  EXPECT_EQ(choose_splits(106, 24, 132), 1);
  EXPECT_EQ(choose_splits(56, 4, 132), 1);   // few tiles
  EXPECT_EQ(choose_splits(56, 24, 132), 2);  // 112 blocks of 12 tiles
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
