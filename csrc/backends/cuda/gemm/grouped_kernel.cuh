// y = x W_e^T, or codes of its SwiGLU, on the tensor cores for rows sorted by expert, sizes on the device.
#pragma once

#include "backends/cuda/gemm/grouped_ring.cuh"
#include "backends/cuda/kernels/grid_dependency.cuh"

namespace onerec::cuda::kernels {

// Two warpgroups run a Multiplier, a third has the thread that brings their tiles.
template <class Multiplier>
__global__ void __launch_bounds__(Multiplier::Tile::kThreads, 1)
    grouped_kernel(const __grid_constant__ GroupedParams p) {
  using Tile = typename Multiplier::Tile;
  wait_for_previous_kernel();
  allow_next_kernel();
  extern __shared__ unsigned char grouped_memory[];
  const GroupedShared<Tile> shared(grouped_memory);
  if (threadIdx.x == 0) {
    prefetch_map(&p.weights);
    prefetch_map(&p.tokens);
    for (int step = 0; step < Tile::kSteps; ++step) {
      init_barrier(shared.full + step, 1);
      init_barrier(shared.empty + step, Tile::kMultipliers / 32);
    }
    publish_barriers();
  }
  __syncthreads();
  if (threadIdx.x < Tile::kMultipliers) {
    take_registers<240>();
    Multiplier(p, shared).run();
  } else {
    give_up_registers<24>();
    if (threadIdx.x == Tile::kMultipliers) bring_tiles(p, shared);
  }
}

}  // namespace onerec::cuda::kernels
