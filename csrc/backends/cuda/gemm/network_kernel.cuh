// An expert's whole network in one kernel, for experts of few tokens: the first product with SwiGLU and codes, and the
// second product of these codes.
//
// Weights are read once, so that memory is the limit, and what costs time is when it idles: while a product's last
// tiles are made by some of the blocks, and while the next kernel begins. Here a block goes on with tiles of the second
// product when there are no more of the first. It brings their weights at once; for their tokens it waits until all of
// the first product's tiles with these tokens have been stored.
#pragma once

#include "backends/cuda/gemm/grouped_kernel.cuh"
#include "backends/cuda/gemm/grouped_weight_rows.cuh"
#include "backends/cuda/gemm/network_tiles.h"
#include "backends/cuda/gemm/shared_words.cuh"

namespace onerec::cuda::kernels {

struct NetworkParams {
  GroupedParams first;   // kSwigluCodes
  GroupedParams second;  // kValues, of the first's codes
  std::uint32_t* progress;
};

// A tile as the thread that brings it tells the multipliers.
struct NetworkTile {
  int expert;  // negative: there are no more
  int first_output;
  int first_token;
  bool second;
};

constexpr int network_epilogue(int tokens) {
  const int codes = weight_rows_epilogue(GroupedResult::kSwigluCodes, tokens);
  const int values = weight_rows_epilogue(GroupedResult::kValues, tokens);
  return (codes > values ? codes : values) + kToldTiles * static_cast<int>(sizeof(NetworkTile));
}

template <int kTokens>
struct FirstTile
    : WeightRowsTile<GroupedFormat::kFp8Block, kTokens, 2, GroupedResult::kSwigluCodes, network_epilogue(kTokens)> {
  static constexpr bool kReadOnce = true;
};

// Its steps lie where the first product's do. Half as many outputs: the smaller the last tiles, the sooner the last
// block ends.
template <int kTokens>
struct SecondTile
    : WeightRowsTile<GroupedFormat::kFp8Block, kTokens, 1, GroupedResult::kValues, network_epilogue(kTokens)> {
  static constexpr int kSteps = FirstTile<kTokens>::kSteps;
  static constexpr int kSlotBytes = FirstTile<kTokens>::kSlotBytes;
  static constexpr bool kReadOnce = true;
};

template <int kTokens_>
struct NetworkShape {
  static constexpr int kTokens = kTokens_;
  using First = FirstTile<kTokens>;
  using Second = SecondTile<kTokens>;
  using Tiles = NetworkTiles<First::kColumns, Second::kColumns, kTokens>;
  static constexpr int kMultiplierRegisters = 208;
  static constexpr int kBringerRegisters = 88;
};

template <class Tile>
__device__ __forceinline__ NetworkTile& network_tile(const GroupedShared<Tile>& shared, int number) {
  constexpr int kBytes = kToldTiles * static_cast<int>(sizeof(NetworkTile));
  return reinterpret_cast<NetworkTile*>(shared.results + Tile::kEpilogueBytes - kBytes)[number % kToldTiles];
}

// The thread that brings tiles.
template <class Shape>
class NetworkBringer {
 public:
  using First = typename Shape::First;
  using Second = typename Shape::Second;

  __device__ __forceinline__ NetworkBringer(const NetworkParams& p, const GroupedShared<First>& first,
                                            const GroupedShared<Second>& second)
      : p_(p), first_(first), second_(second) {}

  __device__ __forceinline__ void run() {
    int next = take();
    typename Shape::Tiles tiles(p_.first.offsets, p_.first.experts, p_.first.columns, p_.second.columns);
    int number = 0;
    for (;; ++number) {
      tiles.seek(next);
      if (!tiles.valid()) break;
      const NetworkTile tile{tiles.expert(), tiles.first_output(), tiles.first_token(), tiles.second()};
      next = tile.second ? bring_second(tile, number) : bring_first(tile, number);
    }
    wait_barrier(first_.empty + place_.step, place_.parity ^ 1);
    network_tile(first_, number) = {-1, 0, 0, false};
    arrive(first_.full + place_.step);
  }

 private:
  using Place = RingPlace<First::kSteps>;

  __device__ __forceinline__ int take() {
    return static_cast<int>(take_shared_by_blocks(p_.progress + NetworkProgress::taken()));
  }

  // Tells the tile ahead of its first step and takes the next one ahead of its last.
  __device__ __forceinline__ int begin_step(const GroupedParams& p, const NetworkTile& tile, int number, int k,
                                            int bytes, int next) {
    if (k + 1 == p.depth_steps) next = take();
    wait_barrier(first_.empty + place_.step, place_.parity ^ 1);
    if (k == 0) network_tile(first_, number) = tile;
    arrive_expecting(first_.full + place_.step, bytes);
    return next;
  }

  __device__ __forceinline__ int bring_first(const NetworkTile& tile, int number) {
    const GroupedParams& p = p_.first;
    int next = 0;
    for (int k = 0; k < p.depth_steps; ++k) {
      next = begin_step(p, tile, number, k, First::kStepBytes + First::kScaleBytes, next);
      bring_weights(p, first_, place_.step, k, tile.expert, tile.first_output);
      bring_tokens(p, first_, place_.step, k, tile.first_token);
      place_.advance();
    }
    return next;
  }

  // The ring takes the weights of as many steps as it holds before the tokens must be there.
  __device__ __forceinline__ int bring_second(const NetworkTile& tile, int number) {
    const GroupedParams& p = p_.second;
    const int most_ahead = min(Second::kSteps, p.depth_steps);
    int next = 0;
    int step = place_.step;  // of the first tokens that are missing
    int missing = 0;
    bool stored = false;
    for (int k = 0; k < p.depth_steps; ++k) {
      next = begin_step(p, tile, number, k, Second::kStepBytes + Second::kScaleBytes, next);
      bring_weights(p, second_, place_.step, k, tile.expert, tile.first_output);
      place_.advance();
      if (!stored) {
        stored = all_stored(tile.first_token);
        while (!stored && k + 1 == most_ahead) stored = all_stored(tile.first_token);
        if (!stored) continue;
        order_before_copies();
      }
      for (; missing <= k; ++missing) {
        bring_tokens(p, second_, step, missing, tile.first_token);
        step = step + 1 == Second::kSteps ? 0 : step + 1;
      }
    }
    return next;
  }

  __device__ __forceinline__ bool all_stored(int token) {
    const std::uint32_t* const stored = p_.progress + NetworkProgress::stored(token / Shape::kTokens);
    return read_published(stored) == static_cast<std::uint32_t>(p_.first.columns / First::kColumns);
  }

  const NetworkParams& p_;
  const GroupedShared<First>& first_;
  const GroupedShared<Second>& second_;
  Place place_;
};

// A warpgroup's part of the tiles.
template <class Shape>
class NetworkMultiplier {
 public:
  using First = typename Shape::First;
  using Second = typename Shape::Second;

  __device__ __forceinline__ NetworkMultiplier(const NetworkParams& p, const GroupedShared<First>& first,
                                               const GroupedShared<Second>& second)
      : p_(p), shared_(first), first_(p.first, first), second_(p.second, second) {}

  __device__ __forceinline__ void run() {
    RingPlace<First::kSteps> place;
    for (int number = 0;; ++number) {
      wait_barrier(shared_.full + place.step, place.parity);  // of the tile's first step
      const NetworkTile tile = network_tile(shared_, number);
      if (tile.expert < 0) break;
      if (tile.second) {
        second_.place() = place;
        second_.make_tile(tile.expert, tile.first_output, tile.first_token);
        place = second_.place();
      } else {
        first_.place() = place;
        first_.make_tile(tile.expert, tile.first_output, tile.first_token);
        place = first_.place();
        tell_stored(tile.first_token);
      }
    }
  }

 private:
  __device__ __forceinline__ void tell_stored(int token) {
    order_before_copies();
    first_.sync_multipliers();
    if (threadIdx.x == 0) add_publishing(p_.progress + NetworkProgress::stored(token / Shape::kTokens), 1);
  }

  const NetworkParams& p_;
  const GroupedShared<First>& shared_;
  WeightRowsMultiplier<First> first_;
  WeightRowsMultiplier<Second> second_;
};

template <class Shape>
__global__ void __launch_bounds__(Shape::First::kThreads, 1) network_kernel(const __grid_constant__ NetworkParams p) {
  using First = typename Shape::First;
  if (threadIdx.x == 0) ask_for_first_weights<First>(p.first);
  wait_for_previous_kernel();
  allow_next_kernel();
  extern __shared__ unsigned char network_memory[];
  const GroupedShared<First> first(network_memory);
  const GroupedShared<typename Shape::Second> second(network_memory);
  if (threadIdx.x == 0) {
    prefetch_map(&p.first.weights);
    prefetch_map(&p.first.tokens);
    prefetch_map(&p.second.weights);
    prefetch_map(&p.second.tokens);
    init_ring(first);
  }
  __syncthreads();
  if (threadIdx.x < First::kMultipliers) {
    take_registers<Shape::kMultiplierRegisters>();
    NetworkMultiplier<Shape>(p, first, second).run();
  } else {
    give_up_registers<Shape::kBringerRegisters>();
    if (threadIdx.x == First::kMultipliers) NetworkBringer<Shape>(p, first, second).run();
  }
}

}  // namespace onerec::cuda::kernels
