// Which kernel of the CUDA backend a grouped product gets, and the order of its tiles. Runs without a GPU.
#include "backends/cuda/gemm/grouped_select.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "backends/cuda/gemm/grouped_tiles.h"
#include "backends/cuda/gemm/network_tiles.h"
#include "core/error.h"

namespace onerec::cuda {
namespace {

constexpr std::int64_t kExperts = 53;

// A product that every kernel of its format fits, as far as the alignment allows.
class Problem {
 public:
  Problem(WeightFormat format, std::int64_t alignment) {
    const bool dense = format == WeightFormat::kDense;
    weight.experts = kExperts;
    weight.outputs = 2816;
    weight.inputs = 1408;
    weight.format = format;
    weight.dtype = dense ? DType::kBF16 : DType::kE4M3;
    params.weight = &weight;
    params.rows_capacity = 1024 * 3;
    params.alignment = alignment;
    params.x.values = {address, weight.dtype, params.rows_capacity, weight.inputs, weight.inputs};
    if (!dense) {
      params.x.scale_kind = format == WeightFormat::kFp8Block ? ScaleKind::kPerBlock : ScaleKind::kPerRow;
      params.x.scales = reinterpret_cast<float*>(address);
      params.x.scale_stride = params.rows_capacity;
    }
    params.y = {address, DType::kBF16, params.rows_capacity, weight.outputs, weight.outputs};
  }
  Problem(const Problem&) = delete;
  Problem& operator=(const Problem&) = delete;

  std::string choice() const {
    const int config = choose_grouped_config(params);
    return config == kPlainGrouped ? "plain" : grouped_configs()[static_cast<std::size_t>(config)].name;
  }

  static constexpr std::uintptr_t kFirstAddress = 4096;
  void* const address = reinterpret_cast<void*>(kFirstAddress);
  void* const odd_address = reinterpret_cast<void*>(kFirstAddress + 8);

  LinearWeight weight;
  GroupedLinearParams params;
};

TEST(GroupedSelect, AlignmentGrowsWithTheRowsOfAnExpert) {
  EXPECT_EQ(choose_grouped_alignment(0, kExperts, 3), 16);
  EXPECT_EQ(choose_grouped_alignment(1, kExperts, 3), 16);
  EXPECT_EQ(choose_grouped_alignment(32, kExperts, 3), 16);
  EXPECT_EQ(choose_grouped_alignment(256, kExperts, 3), 32);
  EXPECT_EQ(choose_grouped_alignment(512, kExperts, 3), 64);
  EXPECT_EQ(choose_grouped_alignment(2048, kExperts, 3), 128);
  EXPECT_EQ(choose_grouped_alignment(16384, kExperts, 3), 128);
  std::int64_t last = 1;
  for (std::int64_t rows = 0; rows <= 4096; ++rows) {
    const std::int64_t alignment = choose_grouped_alignment(rows, kExperts, 3);
    EXPECT_GE(alignment, last) << rows << " rows";
    last = alignment;
  }
}

TEST(GroupedSelect, MostTokensThatTheAlignmentAllows) {
  EXPECT_EQ(Problem(WeightFormat::kFp8Block, 16).choice(), "fp8_block_128x16");
  EXPECT_EQ(Problem(WeightFormat::kFp8Block, 128).choice(), "fp8_block_256x128_token_rows");
  EXPECT_EQ(Problem(WeightFormat::kFp8Channel, 32).choice(), "fp8_channel_128x32");
  EXPECT_EQ(Problem(WeightFormat::kDense, 64).choice(), "bf16_128x64");
  EXPECT_EQ(Problem(WeightFormat::kDense, 192).choice(), "bf16_128x64");
  EXPECT_EQ(Problem(WeightFormat::kDense, 256).choice(), "bf16_256x128");
  EXPECT_EQ(Problem(WeightFormat::kDense, 48).choice(), "bf16_128x16");
  EXPECT_EQ(Problem(WeightFormat::kDense, 8).choice(), "plain");
  EXPECT_EQ(Problem(WeightFormat::kDense, 1).choice(), "plain");
}

TEST(GroupedSelect, TokensAsRowsWhereWeightsComeInWholeGroups) {
  Problem problem(WeightFormat::kFp8Block, 128);
  for (const std::int64_t rows : {128, 1024}) {
    problem.params.rows_capacity = kExperts * rows;
    problem.params.x.scale_stride = problem.params.rows_capacity;
    problem.weight.outputs = 2816;
    EXPECT_EQ(problem.choice(), "fp8_block_256x128_token_rows");
    problem.weight.outputs = 2824;
    EXPECT_EQ(problem.choice(), "fp8_block_256x128");
  }
}

TEST(GroupedSelect, EveryAlignmentHasAKernelOfEveryFormat) {
  for (const std::int64_t rows : {1, 256, 512, 4096}) {
    const std::int64_t alignment = choose_grouped_alignment(rows, kExperts, 3);
    for (const WeightFormat format : {WeightFormat::kDense, WeightFormat::kFp8Channel, WeightFormat::kFp8Block}) {
      const Problem problem(format, alignment);
      const int config = choose_grouped_config(problem.params);
      ASSERT_NE(config, kPlainGrouped);
      EXPECT_EQ(grouped_configs()[static_cast<std::size_t>(config)].tokens, alignment);
    }
  }
}

TEST(GroupedSelect, ConfigsHaveTheirOwnNames) {
  std::set<std::string> names;
  for (const GroupedConfig& config : grouped_configs()) names.insert(config.name);
  for (const GroupedConfig& config : grouped_swiglu_configs()) names.insert(config.name);
  for (const GroupedConfig& config : network_configs()) names.insert(config.name);
  EXPECT_EQ(names.size(), grouped_configs().size() + grouped_swiglu_configs().size() + network_configs().size());
}

// What the copy engine or the store cannot do goes to the plain kernels.
TEST(GroupedSelect, PlainWhereTensorCoresCannot) {
  const auto choice = [](WeightFormat format, auto&& change) {
    Problem problem(format, 64);
    change(problem);
    return problem.choice();
  };
  constexpr WeightFormat kBlock = WeightFormat::kFp8Block;
  EXPECT_EQ(choice(kBlock, [](Problem&) {}), "fp8_block_128x64");
  EXPECT_EQ(choice(kBlock, [](Problem& p) { p.params.rows_capacity = 0; }), "plain");
  EXPECT_EQ(choice(kBlock, [](Problem& p) { p.params.y.dtype = DType::kF32; }), "plain");
  EXPECT_EQ(choice(kBlock, [](Problem& p) { p.weight.inputs = 1400; }), "plain");
  EXPECT_EQ(choice(kBlock, [](Problem& p) { p.weight.inputs = 1424; }), "fp8_block_128x64");
  EXPECT_EQ(choice(kBlock, [](Problem& p) { p.weight.outputs = 2820; }), "plain");
  EXPECT_EQ(choice(kBlock, [](Problem& p) { p.weight.outputs = 2824; }), "fp8_block_128x64");
  EXPECT_EQ(choice(kBlock, [](Problem& p) { p.params.x.values.stride += 8; }), "plain");
  EXPECT_EQ(choice(kBlock, [](Problem& p) { p.params.x.values.data = p.odd_address; }), "plain");
  EXPECT_EQ(choice(kBlock, [](Problem& p) { p.params.y.stride += 4; }), "plain");
  EXPECT_EQ(choice(kBlock, [](Problem& p) { p.params.y.data = p.odd_address; }), "plain");
  EXPECT_EQ(choice(kBlock, [](Problem& p) { p.params.x.scale_stride += 1; }), "plain");
  EXPECT_EQ(choice(kBlock, [](Problem& p) { p.params.x.scales = static_cast<float*>(p.odd_address); }), "plain");
  EXPECT_EQ(choice(WeightFormat::kFp8Channel, [](Problem& p) { p.params.x.scale_stride += 1; }), "fp8_channel_128x64");
  EXPECT_EQ(choice(WeightFormat::kDense, [](Problem& p) { p.weight.inputs = 1400; }), "bf16_128x64");
  EXPECT_EQ(choice(WeightFormat::kDense, [](Problem& p) { p.weight.dtype = DType::kF32; }), "plain");
}

TEST(GroupedSelect, SwigluWhereTilesAreWholeBlocks) {
  const auto choice = [](std::int64_t alignment, auto&& change) -> std::string {
    Problem problem(WeightFormat::kFp8Block, alignment);
    const GroupedLinearParams& p = problem.params;
    GroupedSwigluParams params{.x = p.x,
                               .weight = p.weight,
                               .offsets = p.offsets,
                               .width = 1408,
                               .gate_up = p.y,
                               .quantized = {.values = {problem.address, DType::kE4M3, p.rows_capacity, 1408, 1408}},
                               .rows_capacity = p.rows_capacity,
                               .alignment = p.alignment};
    change(params);
    const int config = choose_grouped_swiglu_config(params);
    return config == kUnfusedSwiglu ? "unfused" : grouped_swiglu_configs()[static_cast<std::size_t>(config)].name;
  };
  const auto as_is = [](GroupedSwigluParams&) {};
  EXPECT_EQ(choice(8, as_is), "unfused");
  EXPECT_EQ(choice(16, as_is), "swiglu_fp8_block_256x16");
  EXPECT_EQ(choice(32, as_is), "swiglu_fp8_block_256x32");
  EXPECT_EQ(choice(192, as_is), "swiglu_fp8_block_256x64");
  EXPECT_EQ(choice(128, as_is), "swiglu_fp8_block_256x128_token_rows");
  EXPECT_EQ(choice(128, [](GroupedSwigluParams& p) { p.rows_capacity = kExperts * 1024; }),
            "swiglu_fp8_block_256x128_pairs");
  EXPECT_EQ(choice(64, [](GroupedSwigluParams& p) { p.width = 1400; }), "unfused");
  EXPECT_EQ(choice(64, [](GroupedSwigluParams& p) { p.gate_up.dtype = DType::kF32; }), "unfused");
  EXPECT_EQ(choice(64, [](GroupedSwigluParams& p) { p.quantized.values.stride += 8; }), "unfused");
  EXPECT_EQ(choice(64, [](GroupedSwigluParams& p) { p.x.scale_stride += 1; }), "unfused");
  EXPECT_EQ(choice(64, [](GroupedSwigluParams& p) { p.rows_capacity = 0; }), "unfused");
}

TEST(GroupedSelect, WholeNetworksWhereExpertsHaveFewTokens) {
  const auto choice = [](std::int64_t alignment, auto&& change) -> std::string {
    Problem gate_up(WeightFormat::kFp8Block, alignment);
    Problem down(WeightFormat::kFp8Block, alignment);
    down.weight.outputs = 1408;
    const GroupedLinearParams& p = gate_up.params;
    RoutedFeedForwardParams params{
        .gather = {},
        .first = {.x = p.x,
                  .weight = p.weight,
                  .offsets = p.offsets,
                  .width = 1408,
                  .gate_up = p.y,
                  .quantized = {.values = {gate_up.address, DType::kE4M3, p.rows_capacity, 1408, 1408}},
                  .rows_capacity = p.rows_capacity,
                  .alignment = p.alignment},
        .second = down.params};
    change(params, down);
    const int config = choose_network_config(params);
    return config == kNoNetwork ? "parts" : network_configs()[static_cast<std::size_t>(config)].name;
  };
  const auto as_is = [](RoutedFeedForwardParams&, Problem&) {};
  EXPECT_EQ(choice(8, as_is), "parts");
  EXPECT_EQ(choice(16, as_is), "network_fp8_block_16");
  EXPECT_EQ(choice(32, as_is), "network_fp8_block_32");
  EXPECT_EQ(choice(64, as_is), "network_fp8_block_64");
  EXPECT_EQ(choice(128, as_is), "parts");
  EXPECT_EQ(choice(64, [](RoutedFeedForwardParams& p, Problem&) { p.first.width = 1400; }), "parts");
  EXPECT_EQ(choice(64, [](RoutedFeedForwardParams& p, Problem&) { p.second.y.dtype = DType::kF32; }), "parts");
  EXPECT_EQ(choice(64, [](RoutedFeedForwardParams&, Problem& down) { down.weight.outputs = 1412; }), "parts");
  EXPECT_EQ(choice(64, [](RoutedFeedForwardParams&, Problem& down) { down.weight.format = WeightFormat::kDense; }),
            "parts");
}

using Tile = std::pair<int, int>;  // first token, first output

template <int kOutputs, int kTokens>
void check_tiles(const std::vector<int>& token_tiles, int outputs, int blocks) {
  SCOPED_TRACE(concat(token_tiles.size(), " experts ", outputs, " outputs ", blocks, " blocks"));
  std::vector<std::int32_t> offsets = {0};
  for (const int tiles : token_tiles) offsets.push_back(offsets.back() + tiles * kTokens);
  const int experts = static_cast<int>(token_tiles.size());
  std::map<Tile, int> expert_of;
  for (int block = 0; block < blocks; ++block) {
    int last_expert = 0;
    for (kernels::GroupedTiles<kOutputs, kTokens> tile(offsets.data(), experts, outputs, block, blocks); tile.valid();
         tile.next()) {
      EXPECT_TRUE(expert_of.emplace(Tile{tile.first_token(), tile.first_output()}, tile.expert()).second) << "twice";
      EXPECT_GE(tile.expert(), last_expert);
      last_expert = tile.expert();
      if (testing::Test::HasFailure()) return;
    }
  }
  std::size_t want = 0;
  for (int expert = 0; expert < experts; ++expert) {
    for (int token = offsets[expert]; token < offsets[expert + 1]; token += kTokens) {
      for (int output = 0; output < outputs; output += kOutputs) {
        const auto found = expert_of.find({token, output});
        ASSERT_TRUE(found != expert_of.end()) << "token " << token << " output " << output;
        EXPECT_EQ(found->second, expert);
        ++want;
      }
    }
  }
  EXPECT_EQ(expert_of.size(), want);
}

TEST(GroupedTiles, EveryTileOnceWithItsExpert) {
  for (const int blocks : {1, 3, 132}) {
    for (const int outputs : {8, 128, 1408, 2816}) {
      check_tiles<128, 16>({1, 0, 3, 0, 0, 2}, outputs, blocks);
      check_tiles<128, 16>({0, 0, 7}, outputs, blocks);
      check_tiles<256, 128>({40, 1, 0, 16, 17, 33}, outputs, blocks);
      check_tiles<256, 128>({0}, outputs, blocks);
      check_tiles<128, 64>({0, 0, 0}, outputs, blocks);
    }
  }
  check_tiles<128, 32>(std::vector<int>(256, 1), 2816, 132);
}

// Blocks that run side by side share weights: all tokens of an output tile, up to a group, come one after the other.
TEST(GroupedTiles, TokensOfAnOutputTileAreNeighbours) {
  const std::int32_t offsets[] = {0, 20 * 128};
  std::vector<Tile> order;
  for (kernels::GroupedTiles<256, 128> tile(offsets, 1, 512, 0, 1); tile.valid(); tile.next()) {
    order.emplace_back(tile.first_token() / 128, tile.first_output() / 256);
  }
  std::vector<Tile> want;
  for (const auto& [first, end] : {std::pair(0, 16), std::pair(16, 20)}) {
    for (const int output : {0, 1}) {
      for (int token = first; token < end; ++token) want.emplace_back(token, output);
    }
  }
  EXPECT_EQ(order, want);
}

// All of the first product's tiles, then all of the second's, whichever numbers a block gets.
TEST(NetworkTiles, BothProductsOneAfterTheOther) {
  constexpr int kTokens = 16;
  const std::vector<std::int32_t> offsets = {0, 16, 16, 64, 96};
  constexpr int kExperts = 4;
  using Tiles = kernels::NetworkTiles<128, 128, kTokens>;
  std::vector<std::tuple<bool, int, int, int>> want;
  for (const bool second : {false, true}) {
    kernels::GroupedTiles<128, kTokens> tile(offsets.data(), kExperts, second ? 640 : 256, 0, 1);
    for (; tile.valid(); tile.next()) {
      want.emplace_back(second, tile.expert(), tile.first_output(), tile.first_token());
    }
  }
  EXPECT_EQ(want.size(), std::size_t{6 * (2 + 5)});
  for (const int step : {1, 2, 7, 50}) {
    for (int begin = 0; begin < step; ++begin) {
      Tiles tiles(offsets.data(), kExperts, 256, 640);
      int number = begin;
      for (tiles.seek(number); tiles.valid(); tiles.seek(number)) {
        ASSERT_LT(number, static_cast<int>(want.size()));
        EXPECT_EQ(std::tuple(tiles.second(), tiles.expert(), tiles.first_output(), tiles.first_token()),
                  want[static_cast<std::size_t>(number)]);
        number += step;
      }
      EXPECT_GE(number, static_cast<int>(want.size()));
    }
  }
}

TEST(NetworkTiles, NoRows) {
  const std::vector<std::int32_t> offsets = {0, 0, 0};
  kernels::NetworkTiles<128, 128, 16> tiles(offsets.data(), 2, 128, 128);
  tiles.seek(0);
  EXPECT_FALSE(tiles.valid());
}

// Every tile once; the blocks of a pair share an expert and either their weights or their tokens.
template <int kOutputs, int kTokens>
void check_pair_tiles(const std::vector<int>& token_tiles, int outputs, int pairs) {
  SCOPED_TRACE(concat(token_tiles.size(), " experts ", outputs, " outputs ", pairs, " pairs"));
  std::vector<std::int32_t> offsets = {0};
  for (const int tiles : token_tiles) offsets.push_back(offsets.back() + tiles * kTokens);
  const int experts = static_cast<int>(token_tiles.size());
  std::map<Tile, int> expert_of;
  for (int pair = 0; pair < pairs; ++pair) {
    kernels::GroupedPairTiles<kOutputs, kTokens> first(offsets.data(), experts, outputs, 0, pair, pairs);
    kernels::GroupedPairTiles<kOutputs, kTokens> second(offsets.data(), experts, outputs, 1, pair, pairs);
    for (; first.valid(); first.next(), second.next()) {
      ASSERT_TRUE(second.valid());
      ASSERT_EQ(first.expert(), second.expert());
      ASSERT_EQ(first.shares_tokens(), second.shares_tokens());
      ASSERT_TRUE(first.live());
      const bool shares_tokens = first.shares_tokens();
      ASSERT_EQ(second.first_token(), first.first_token() + (shares_tokens ? 0 : kTokens));
      ASSERT_EQ(second.first_output(), first.first_output() + (shares_tokens ? kOutputs : 0));
      for (const auto& tile : {first, second}) {
        if (!tile.live()) continue;
        ASSERT_TRUE(expert_of.emplace(Tile{tile.first_token(), tile.first_output()}, tile.expert()).second) << "twice";
      }
    }
    ASSERT_FALSE(second.valid());
  }
  std::size_t want = 0;
  for (int expert = 0; expert < experts; ++expert) {
    for (int token = offsets[static_cast<std::size_t>(expert)]; token < offsets[static_cast<std::size_t>(expert) + 1];
         token += kTokens) {
      for (int output = 0; output < outputs; output += kOutputs) {
        const auto found = expert_of.find({token, output});
        ASSERT_TRUE(found != expert_of.end()) << "token " << token << " output " << output;
        EXPECT_EQ(found->second, expert);
        ++want;
      }
    }
  }
  EXPECT_EQ(expert_of.size(), want);
}

TEST(GroupedPairTiles, EveryTileOnceWithItsExpert) {
  for (const int pairs : {1, 2, 66}) {
    for (const int outputs : {8, 128, 256, 384, 1408, 2816}) {
      check_pair_tiles<256, 128>({40, 1, 0, 16, 17, 33, 2, 3}, outputs, pairs);
      check_pair_tiles<128, 128>({7, 8, 9, 0, 0, 5}, outputs, pairs);
      check_pair_tiles<256, 128>({0, 0, 11}, outputs, pairs);
      check_pair_tiles<256, 128>({1}, outputs, pairs);
      check_pair_tiles<256, 128>({0, 0}, outputs, pairs);
      if (HasFatalFailure()) return;
    }
  }
}

}  // namespace
}  // namespace onerec::cuda
