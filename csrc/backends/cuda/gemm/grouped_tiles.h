// The order in which blocks work through the tiles of a grouped matrix product. Plain C++, so that the host can test
// it.
#pragma once

#include <cstdint>

namespace onerec::cuda::kernels {

// Tiles of kOutputs outputs x kTokens rows of one expert, dealt to `blocks` blocks in turn: `block` gets tiles block,
// block + blocks, ... of an order that reads weights and tokens from memory once: expert after expert; of an expert,
// groups of kGroupTiles token tiles; of a group, all token tiles of an output tile before the next output tile.
template <int kOutputs, int kTokens>
class GroupedTiles {
 public:
  // offsets[experts + 1]: where each expert's rows start, multiples of kTokens.
  constexpr GroupedTiles(const std::int32_t* offsets, int experts, int outputs, int block, int blocks)
      : offsets_(offsets),
        output_tiles_((outputs + kOutputs - 1) / kOutputs),
        live_(offsets[experts] / kTokens * output_tiles_),
        blocks_(blocks),
        end_(offsets[1]) {
    seek(block);
  }

  constexpr int count() const { return live_; }
  constexpr bool valid() const { return index_ < live_; }
  constexpr void next() { seek(index_ + blocks_); }

  constexpr int expert() const { return expert_; }
  constexpr int first_token() const { return token_tile_ * kTokens; }
  constexpr int first_output() const { return output_tile_ * kOutputs; }

  // Goes to tile `index`, which is not before the tile that was found last.
  constexpr void seek(int index) {
    index_ = index;
    if (index_ >= live_) return;
    // As many tiles lie before an expert as there are token tiles before its rows, times the output tiles.
    const int reached = index_ / output_tiles_ * kTokens;
    while (end_ <= reached) {
      ++expert_;
      begin_ = end_;
      end_ = offsets_[expert_ + 1];
    }
    const int first = begin_ / kTokens;
    const int within = index_ - first * output_tiles_;
    const int group = within / (kGroupTiles * output_tiles_);
    const int group_first = first + group * kGroupTiles;
    const int left = end_ / kTokens - group_first;
    const int members = left < kGroupTiles ? left : kGroupTiles;
    const int in_group = within - group * kGroupTiles * output_tiles_;
    output_tile_ = in_group / members;
    token_tile_ = group_first + in_group % members;
  }

 private:
  static constexpr int kGroupTiles = 16;

  const std::int32_t* offsets_;
  int output_tiles_;
  int live_;
  int blocks_;
  int index_ = 0;
  int expert_ = 0;
  int begin_ = 0;
  int end_;
  int token_tile_ = 0;
  int output_tile_ = 0;
};

// The same for pairs of blocks that share what they load: `pair` of `pairs`, `rank` 0 or 1 within it. Both blocks of a
// pair walk alike. As a rule they have neighbouring token tiles and the same output tile; of an expert with an odd
// number of token tiles they share the last one and have neighbouring output tiles, of which the second may lie past
// the end (live() is false then: the block has nothing to multiply).
template <int kOutputs, int kTokens>
class GroupedPairTiles {
 public:
  constexpr GroupedPairTiles(const std::int32_t* offsets, int experts, int outputs, int rank, int pair, int pairs)
      : offsets_(offsets),
        experts_(experts),
        outputs_(outputs),
        rank_(rank),
        pairs_(pairs),
        output_tiles_((outputs + kOutputs - 1) / kOutputs) {
    find(pair);
  }

  constexpr bool valid() const { return expert_ < experts_; }
  constexpr void next() { find(index_ + pairs_); }

  constexpr int expert() const { return expert_; }
  constexpr int first_token() const { return token_tile_ * kTokens; }
  constexpr int first_output() const { return output_tile_ * kOutputs; }
  constexpr bool live() const { return first_output() < outputs_; }
  // Otherwise the blocks share their weights.
  constexpr bool shares_tokens() const { return shares_tokens_; }

 private:
  static constexpr int kGroupPairs = 8;

  constexpr void find(int index) {
    index_ = index;
    while (index_ >= end_) {
      if (++expert_ == experts_) return;
      first_tile_ = offsets_[expert_] / kTokens;
      tiles_ = offsets_[expert_ + 1] / kTokens - first_tile_;
      begin_ = end_;
      end_ += tiles_ / 2 * output_tiles_ + (tiles_ % 2 != 0 ? (output_tiles_ + 1) / 2 : 0);
    }
    const int token_pairs = tiles_ / 2;
    int within = index_ - begin_;
    shares_tokens_ = within >= token_pairs * output_tiles_;
    if (shares_tokens_) {
      token_tile_ = first_tile_ + tiles_ - 1;
      output_tile_ = (within - token_pairs * output_tiles_) * 2 + rank_;
      return;
    }
    const int group = within / (kGroupPairs * output_tiles_);
    const int left = token_pairs - group * kGroupPairs;
    const int members = left < kGroupPairs ? left : kGroupPairs;
    within -= group * kGroupPairs * output_tiles_;
    output_tile_ = within / members;
    token_tile_ = first_tile_ + (group * kGroupPairs + within % members) * 2 + rank_;
  }

  const std::int32_t* offsets_;
  int experts_;
  int outputs_;
  int rank_;
  int pairs_;
  int output_tiles_;
  int index_ = 0;
  int expert_ = -1;
  int begin_ = 0;  // tiles of pairs before the expert
  int end_ = 0;
  int first_tile_ = 0;  // of the expert's token tiles
  int tiles_ = 0;
  int token_tile_ = 0;
  int output_tile_ = 0;
  bool shares_tokens_ = false;
};

}  // namespace onerec::cuda::kernels
