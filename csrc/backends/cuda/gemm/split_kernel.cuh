// y = x W^T of FP8 codes with a scale per row of x and per row of W, for so few rows that whole tiles would leave
// multiprocessors idle, or small ones read too much.
//
// What a multiprocessor takes from the L2 cache per product falls with the size of a tile, and with few rows large
// tiles are few. Where K is short, tiles are small, of 32 or 64 outputs: then their time is what they take from the
// cache, 64 bytes a clock. Where it is long, the blocks of a cluster divide a larger tile's K: each multiplies its
// part, then sends the sums that another one finishes to that one's shared memory; sums are added in the order of the
// parts. A launch is short; besides that:
// * The weights of the first steps are brought before the previous kernel has ended.
// * What follows the last product has no branches, so that the compiler runs a thread's results side by side.
// * Sums are sent to a place in the ring whose products are done, from thread to thread, and counted where they arrive:
//   the exchange has no barrier of the cluster.
// * Blocks of neighbouring row tiles may share what they load of W.
#pragma once

#include "backends/cuda/gemm/split_multiplier.cuh"

namespace onerec::cuda::kernels {

template <class Tile>
__global__ void __cluster_dims__(Tile::kCluster, 1, 1) __launch_bounds__(Tile::kThreads, 1)
    split_kernel(const __grid_constant__ DirectParams p) {
  allow_next_kernel();
  extern __shared__ unsigned char split_memory[];
  const SplitShared<Tile> shared(split_memory);
  if (threadIdx.x == 0) {
    prefetch_map(&p.weights);
    prefetch_map(&p.tokens);
    for (int step = 0; step < Tile::kSteps; ++step) {
      init_barrier(shared.full + step, 1);
      init_barrier(shared.empty + step, Tile::kShare * Tile::kMultiplierWarps);
    }
    if constexpr (Tile::kParts > 1) {
      const int part = rank_in_cluster() % Tile::kParts;
      init_barrier(shared.open, (Tile::kParts - 1) * Tile::kMultiplierWarps);
      for (int group = 0; group < Tile::kWarpgroups; ++group) {
        init_barrier(shared.received + group, 1);
        arrive_expecting(shared.received + group, (Tile::kParts - 1) *
                                                      units_of_part(Tile::kOutputs, part, Tile::kParts) *
                                                      Tile::kUnitBytes / Tile::kWarpgroups);
      }
    }
    publish_barriers();
  }
  __syncwarp();
  meet_cluster();
  if (threadIdx.x < Tile::kMultipliers) {
    SplitMultiplier<Tile>(p, shared).run();
  } else if (threadIdx.x == Tile::kMultipliers) {
    SplitProducer<Tile>(p, shared).run();
  } else {
    wait_for_previous_kernel();
  }
}

}  // namespace onerec::cuda::kernels
