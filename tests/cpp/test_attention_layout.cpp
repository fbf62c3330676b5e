// The index arithmetic of the tensor-core cross-attention against the rules of the hardware, on the host.
#include "backends/cuda/kernels/attention_layout.cuh"

#include <gtest/gtest.h>

#include <algorithm>
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

constexpr int kTileRows = kUsualTileTokens;

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
          for (const int within : {0, 12}) {
            EXPECT_EQ(move_to_chunk(rows, chunk_offset(rows, row, 0) + within, chunk), offset + within);
          }
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
  void release(int use) {
    check(use);
    emptied[ring_stage(use, stages())].arrive();
  }
};

// The barriers by which two warpgroups take turns: how often each may go ahead.
struct TurnTaking {
  std::array<int, 2> granted = {1, 0};

  bool take(int consumer) {
    if (granted[consumer] == 0) return false;
    --granted[consumer];
    return true;
  }
  void pass(int consumer) { ASSERT_EQ(++granted[1 - consumer], 1); }
};

struct Block {
  bool separate;
  Ring items{kItemSlots, kFlashWarpgroups};
  Ring keys{separate ? 2 : 5, kFlashWarpgroups};
  Ring own_values{2, kFlashWarpgroups};
  TurnTaking turns = {};

  Ring& values() { return separate ? own_values : keys; }
};

struct Item {
  int tiles;
  bool both;  // warpgroups have rows
};

// What a copying thread or a warpgroup does next; false while it has to wait. In the order of flash_attention.cuh.
using Step = std::function<bool()>;

std::vector<Step> copies(Block& block, const std::vector<Item>& items) {
  std::vector<Step> steps;
  const auto fill = [&](Ring& ring, int use) { steps.push_back([&ring, use] { return ring.fill(use); }); };
  int use = 0;
  for (std::size_t number = 0; number < items.size(); ++number) {
    fill(block.items, static_cast<int>(number));
    for (int tile = 0; tile < items[number].tiles; ++tile) {
      fill(block.keys, use + tile);
      if (block.separate && tile > 0) fill(block.own_values, use + tile - 1);
    }
    use += items[number].tiles;
    if (block.separate && items[number].tiles > 0) fill(block.own_values, use - 1);
  }
  fill(block.items, static_cast<int>(items.size()));
  return steps;
}

std::vector<Step> products(Block& block, const std::vector<Item>& items, int consumer) {
  std::vector<Step> steps;
  const auto await = [&](Ring& ring, int use) { steps.push_back([&ring, use] { return ring.is_filled(use); }); };
  const auto read = [&](Ring& ring, int use) { steps.push_back([&ring, use] { return ring.check(use), true; }); };
  const auto release = [&](Ring& ring, int use) { steps.push_back([&ring, use] { return ring.release(use), true; }); };
  const auto check_item = [&](int number) {
    steps.push_back([&block, number] { return block.items.check(number), true; });
  };
  constexpr int kNone = -1;
  int use = 0;
  int summing = kNone;
  int pending = kNone;
  const auto finish_sums = [&] {
    if (summing != kNone) release(block.values(), summing);
    summing = kNone;
  };
  const auto await_values = [&] {
    if (pending != kNone) await(block.values(), use - 1);
  };
  const auto start_sums = [&] {
    if (pending == kNone) return;
    read(block.values(), use - 1);
    summing = use - 1;
  };
  const auto store_pending = [&] {
    if (pending == kNone) return;
    check_item(pending);
    release(block.items, pending);
    pending = kNone;
  };
  for (int number = 0; number < static_cast<int>(items.size()); ++number) {
    const auto [tiles, both] = items[static_cast<std::size_t>(number)];
    const int end = use + tiles;
    await(block.items, number);
    if (tiles == 0 || (!both && consumer > 0)) {
      await_values();
      start_sums();
      finish_sums();
      store_pending();
      for (; use < end; ++use) {
        await(block.keys, use);
        release(block.keys, use);
        if (!block.separate) continue;
        await(block.own_values, use);
        release(block.own_values, use);
      }
      release(block.items, number);
      continue;
    }
    const auto multiply = [&, both = both] {
      await_values();
      await(block.keys, use);
      if (both) steps.push_back([&block, consumer] { return block.turns.take(consumer); });
      check_item(number);
      read(block.keys, use);
      start_sums();
      if (both) steps.push_back([&block, consumer] { return block.turns.pass(consumer), true; });
    };
    multiply();
    await(block.values(), use);  // to clear its end
    if (block.separate) release(block.keys, use);
    finish_sums();
    store_pending();
    pending = number;
    for (++use; use < end; ++use) {
      finish_sums();
      multiply();
      if (block.separate) release(block.keys, use);
    }
    finish_sums();
  }
  await(block.items, static_cast<int>(items.size()));
  await_values();
  start_sums();
  finish_sums();
  store_pending();
  if (consumer == 0) steps.push_back([&block] { return block.turns.take(0); });
  return steps;
}

TEST(AttentionLayout, ABlockNeitherBlocksNorOverwritesWhatIsRead) {
  Random random(2);
  for (int round = 0; round < 400; ++round) {
    Block block{.separate = round % 2 == 0};
    std::vector<Item> items(uniform(random, 0, 6));
    for (Item& item : items) {
      item = {.tiles = static_cast<int>(uniform(random, 0, round % 3 == 0 ? 12 : 4)),
              .both = uniform(random, 0, 3) > 0};
    }
    std::vector<std::vector<Step>> threads = {copies(block, items)};
    for (int i = 0; i < kFlashWarpgroups; ++i) threads.push_back(products(block, items, i));
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
      ASSERT_TRUE(moved) << "all wait, " << items.size() << " items";
      ASSERT_FALSE(HasFatalFailure());
    }
    EXPECT_EQ(block.turns.granted, (std::array<int, 2>{0, 0}));
  }
}

}  // namespace
}  // namespace onerec::cuda::kernels
