// y = x W^T of FP8 codes with a scale per row of x and per row of W, or its SwiGLU: for many rows.
//
// A tile is 128 tokens x up to 256 outputs. Two warpgroups multiply 64 tokens each with all of the tile's weights; sums
// stay in the tensor cores' registers over all of K. Where the time goes otherwise:
// * What tiles take from the L2 cache: the blocks of a cluster have neighbouring tokens and the same weights, of which
//   each brings a part to all of them.
// * Results: stored from registers, 16 bytes per thread and 64 of a row at a time, since the copy engine brings the
//   weights in the order in which this comes out (direct_tiles.h). No shared memory, and no barrier between the
//   warpgroups: the second one begins some steps behind the first, and has the tensor cores while that one stores.
// * The start: the first weights are brought before the previous kernel has ended.
#pragma once

#include "backends/cuda/gemm/direct_multiplier.cuh"

namespace onerec::cuda::kernels {

template <class Tile>
__global__ void __cluster_dims__(Tile::kCluster, 1, 1) __launch_bounds__(Tile::kThreads, 1)
    direct_kernel(const __grid_constant__ DirectParams p) {
  allow_next_kernel();
  extern __shared__ unsigned char direct_memory[];
  const DirectShared<Tile> shared(direct_memory);
  if (threadIdx.x == 0) {
    prefetch_map(&p.weights);
    prefetch_map(&p.tokens);
    for (int step = 0; step < Tile::kSteps; ++step) {
      init_barrier(shared.full + step, 1);
      init_barrier(shared.empty + step, Tile::kCluster * Tile::kMultiplierWarps);
    }
    publish_barriers();
  }
  __syncwarp();
  meet_cluster();
  if (threadIdx.x < Tile::kMultipliers) {
    take_registers<232>();
    DirectMultiplier<Tile>(p, shared).run();
  } else {
    give_up_registers<40>();
    if (threadIdx.x == Tile::kMultipliers) {
      DirectProducer<Tile>(p, shared).run();
    } else {
      wait_for_previous_kernel();
    }
  }
}

}  // namespace onerec::cuda::kernels
