// How a cluster of two blocks shares what it brings into shared memory.
//
// Both blocks work on tiles of the same expert (GroupedPairTiles): as a rule on the same weights, of which each brings
// one half to both. A step of the ring may be filled when the multipliers of both blocks have released it; the bytes
// that a block waits for are the same whoever brings them.
#pragma once

#include "backends/cuda/gemm/grouped_cluster.cuh"
#include "backends/cuda/gemm/grouped_ring.cuh"

namespace onerec::cuda::kernels {

template <class Tile>
__device__ __forceinline__ auto tiles_of_pair(const GroupedParams& p) {
  return GroupedPairTiles<Tile::kColumns, Tile::kTokens>(p.offsets, p.experts, p.columns, rank_in_cluster(),
                                                         static_cast<int>(blockIdx.x) / kPairBlocks,
                                                         static_cast<int>(gridDim.x) / kPairBlocks);
}

// One thread of each block.
template <class Tile>
__device__ __forceinline__ void bring_tiles_of_pair(const GroupedParams& p, const GroupedShared<Tile>& shared) {
  constexpr int kWeightHalf = Tile::kWeightBoxRows * kTileRowBytes;
  constexpr int kTokenHalf = Tile::kTokenBoxRows * kTileRowBytes;
  static_assert(2 * kWeightHalf == Tile::kWeightBytes && 2 * kTokenHalf == Tile::kTokenBytes && Tile::kOrdered);
  static_assert(Tile::kSwiglu, "one half of the weights are gates, the other ups");
  const int rank = rank_in_cluster();
  RingPlace<Tile::kSteps> place;
  int number = 0;
  for (auto tile = tiles_of_pair<Tile>(p); tile.valid(); tile.next(), ++number) {
    const int first_gate = tile.first_output();
    const int first_up = p.columns + first_gate;
    for (int k = 0; k < p.depth_steps; ++k) {
      std::uint64_t* const full = shared.full + place.step;
      unsigned char* const weights = shared.weights(place.step);
      unsigned char* const tokens = shared.tokens(place.step);
      const int depth = k * Tile::kDepth;
      wait_barrier(shared.empty + place.step, place.parity ^ 1);
      if (k == 0) {
        tell_tile(shared, number, {tile.expert(), tile.first_output(), tile.first_token(), tile.live()});
      }
      arrive_expecting(full, Tile::kStepBytes + Tile::kScaleBytes);
      if (tile.shares_tokens()) {
        copy_box_to_both(&p.tokens, full, tokens + rank * kTokenHalf, depth,
                         tile.first_token() + rank * Tile::kTokenBoxRows);
        copy_weights<Tile>(p, full, weights, depth, first_gate, tile.expert());
        copy_weights<Tile>(p, full, weights + kWeightHalf, depth, first_up, tile.expert());
      } else {
        const int output = rank == 0 ? first_gate : first_up;
        copy_groups(&p.weights, full, weights + rank * kWeightHalf, depth,
                    (tile.expert() * p.outputs + output) / kResultGroup, kBothBlocks);
        copy_box(&p.tokens, full, tokens, depth, tile.first_token());
        copy_box(&p.tokens, full, tokens + kTokenHalf, depth, tile.first_token() + Tile::kTokenBoxRows);
      }
      copy_bytes(p.token_scales + k * p.token_scale_stride + tile.first_token(), full, shared.token_scales(place.step),
                 Tile::kScaleBytes);
      place.advance();
    }
  }
  tell_end(shared, place, number);
}

// This warp has read the ring's step for the last time. `empty`: the address of lane 0's and lane 1's first barrier.
__device__ __forceinline__ void release_step_of_pair(std::uint32_t empty, int step) {
  __syncwarp();
  if (threadIdx.x % 32 < kPairBlocks) arrive_at(empty + static_cast<std::uint32_t>(step) * 8);
}

}  // namespace onerec::cuda::kernels
