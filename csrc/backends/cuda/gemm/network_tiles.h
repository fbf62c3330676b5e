// In which order the blocks of the experts' network kernel make the tiles of its two products, and what they tell each
// other. Plain C++, so that the host can test it.
#pragma once

#include <cstdint>

#include "backends/cuda/gemm/grouped_tiles.h"

namespace onerec::cuda::kernels {

// Words that the blocks share, all 0 at first. Those that everybody adds to lie apart from those that are waited for.
class NetworkProgress {
 public:
  static constexpr int taken() { return 0; }  // tiles
  // Of the rows of a token tile: tiles of the first product that have been stored.
  static constexpr int stored(int token_tile) { return 32 + token_tile; }
  static constexpr std::int64_t words(std::int64_t token_tiles) { return 32 + token_tiles; }
};

// All tiles of the first product, then all of the second, numbered. A block takes numbers one by one, and one is taken
// only after all before it: whoever waits for a tile of the first product knows that a running block makes it.
template <int kFirstColumns, int kSecondColumns, int kTokens>
class NetworkTiles {
 public:
  // `width`: columns of the first product's result, `outputs`: of the second's.
  constexpr NetworkTiles(const std::int32_t* offsets, int experts, int width, int outputs)
      : first_(offsets, experts, width, 0, 1), second_(offsets, experts, outputs, 0, 1) {}

  // Goes to tile `number`, which is not before the one that was asked for last.
  constexpr void seek(int number) {
    number_ = number;
    second() ? second_.seek(number - first_.count()) : first_.seek(number);
  }

  constexpr bool valid() const { return number_ < first_.count() + second_.count(); }
  constexpr bool second() const { return number_ >= first_.count(); }  // of the two products

  constexpr int expert() const { return second() ? second_.expert() : first_.expert(); }
  constexpr int first_output() const { return second() ? second_.first_output() : first_.first_output(); }
  constexpr int first_token() const { return second() ? second_.first_token() : first_.first_token(); }

 private:
  GroupedTiles<kFirstColumns, kTokens> first_;
  GroupedTiles<kSecondColumns, kTokens> second_;
  int number_ = 0;
};

}  // namespace onerec::cuda::kernels
