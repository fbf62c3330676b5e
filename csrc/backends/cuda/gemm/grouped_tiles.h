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
    find(block);
  }

  constexpr bool valid() const { return index_ < live_; }
  constexpr void next() { find(index_ + blocks_); }

  constexpr int expert() const { return expert_; }
  constexpr int first_token() const { return token_tile_ * kTokens; }
  constexpr int first_output() const { return output_tile_ * kOutputs; }

 private:
  static constexpr int kGroupTiles = 16;

  constexpr void find(int index) {
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

}  // namespace onerec::cuda::kernels
