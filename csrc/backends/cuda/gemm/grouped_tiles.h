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
//
// What is dealt is a chunk of equal work: a tile for each block, or two tiles after each other where only half of the
// last output tile exists.
template <int kOutputs, int kTokens>
class GroupedPairTiles {
 public:
  constexpr GroupedPairTiles(const std::int32_t* offsets, int experts, int outputs, int rank, int pair, int pairs)
      : offsets_(offsets),
        experts_(experts),
        outputs_(outputs),
        rank_(rank),
        pairs_(pairs),
        output_tiles_((outputs + kOutputs - 1) / kOutputs),
        whole_(outputs % kOutputs != 0 && outputs % kOutputs <= kOutputs / 2 ? outputs / kOutputs : output_tiles_) {
    find(pair);
  }

  constexpr bool valid() const { return expert_ < experts_; }
  constexpr void next() {
    if (another_pair_) {
      token_tile_ += 2;
      another_pair_ = false;
    } else {
      find(chunk_ + pairs_);
    }
  }

  constexpr int expert() const { return expert_; }
  constexpr int first_token() const { return token_tile_ * kTokens; }
  constexpr int first_output() const { return output_tile_ * kOutputs; }
  constexpr bool live() const { return first_output() < outputs_; }
  // Otherwise the blocks share their weights.
  constexpr bool shares_tokens() const { return shares_tokens_; }

 private:
  static constexpr int kGroupPairs = 8;

  constexpr int halves(int token_pairs) const { return whole_ < output_tiles_ ? (token_pairs + 1) / 2 : 0; }

  constexpr void find(int chunk) {
    chunk_ = chunk;
    while (chunk_ >= end_) {
      if (++expert_ == experts_) return;
      first_tile_ = offsets_[expert_] / kTokens;
      tiles_ = offsets_[expert_ + 1] / kTokens - first_tile_;
      begin_ = end_;
      end_ += tiles_ / 2 * whole_ + halves(tiles_ / 2) + (tiles_ % 2 != 0 ? (output_tiles_ + 1) / 2 : 0);
    }
    const int token_pairs = tiles_ / 2;
    int within = chunk_ - begin_;
    shares_tokens_ = false;
    if (within < token_pairs * whole_) {
      const int group = within / (kGroupPairs * whole_);
      const int left = token_pairs - group * kGroupPairs;
      const int members = left < kGroupPairs ? left : kGroupPairs;
      within -= group * kGroupPairs * whole_;
      output_tile_ = within / members;
      set_pair(group * kGroupPairs + within % members);
      return;
    }
    within -= token_pairs * whole_;
    if (within < halves(token_pairs)) {
      output_tile_ = whole_;
      set_pair(within * 2);
      another_pair_ = within * 2 + 1 < token_pairs;
      return;
    }
    within -= halves(token_pairs);
    shares_tokens_ = true;
    token_tile_ = first_tile_ + tiles_ - 1;
    output_tile_ = within * 2 + rank_;
  }

  constexpr void set_pair(int index) { token_tile_ = first_tile_ + index * 2 + rank_; }

  const std::int32_t* offsets_;
  int experts_;
  int outputs_;
  int rank_;
  int pairs_;
  int output_tiles_;
  int whole_;  // output tiles that are more than half there
  int chunk_ = 0;
  int expert_ = -1;
  int begin_ = 0;  // chunks before the expert
  int end_ = 0;
  int first_tile_ = 0;  // of the expert's token tiles
  int tiles_ = 0;
  int token_tile_ = 0;
  int output_tile_ = 0;
  bool another_pair_ = false;  // of the same chunk
  bool shares_tokens_ = false;
};

}  // namespace onerec::cuda::kernels
