// y = x W_e^T, or codes of its SwiGLU, on the tensor cores for rows sorted by expert, sizes on the device.
#pragma once

#include "backends/cuda/gemm/grouped_pair.cuh"
#include "backends/cuda/kernels/grid_dependency.cuh"

namespace onerec::cuda::kernels {

// One thread, before the others are shown the barriers.
template <class Tile>
__device__ __forceinline__ void init_ring(const GroupedShared<Tile>& shared) {
  for (int step = 0; step < Tile::kSteps; ++step) {
    init_barrier(shared.full + step, 1);
    init_barrier(shared.empty + step, Tile::kBlocks * Tile::kMultipliers / 32);
  }
  publish_barriers();
}

// Two warpgroups run a Multiplier, a third has the thread that brings their tiles.
template <class Multiplier>
__device__ __forceinline__ void run_grouped_block(const GroupedParams& p) {
  using Tile = typename Multiplier::Tile;
  if constexpr (Tile::kBlocks == 1) {
    if (threadIdx.x == 0) ask_for_first_weights<Tile>(p);
  }
  wait_for_previous_kernel();
  allow_next_kernel();
  extern __shared__ unsigned char grouped_memory[];
  const GroupedShared<Tile> shared(grouped_memory);
  if (threadIdx.x == 0) {
    prefetch_map(&p.weights);
    prefetch_map(&p.tokens);
    init_ring(shared);
  }
  if constexpr (Tile::kBlocks == 1) {
    __syncthreads();
  } else {
    sync_cluster();
  }
  if (threadIdx.x < Tile::kMultipliers) {
    take_registers<Tile::kMultiplierRegisters>();
    Multiplier(p, shared).run();
  } else {
    give_up_registers<Tile::kBringerRegisters>();
    if (threadIdx.x == Tile::kMultipliers) {
      if constexpr (Tile::kBlocks == 1) {
        bring_tiles(p, shared);
      } else {
        bring_tiles_of_pair(p, shared);
      }
    }
  }
  if constexpr (Tile::kBlocks != 1) {
    __syncwarp();
    sync_cluster();  // the other block may still arrive at this one's barriers
  }
}

template <class Multiplier>
__global__ void __launch_bounds__(Multiplier::Tile::kThreads, 1)
    grouped_kernel(const __grid_constant__ GroupedParams p) {
  run_grouped_block<Multiplier>(p);
}

template <class Multiplier>
__global__ void __cluster_dims__(kPairBlocks, 1, 1) __launch_bounds__(Multiplier::Tile::kThreads, 1)
    grouped_pair_kernel(const __grid_constant__ GroupedParams p) {
  static_assert(Multiplier::Tile::kBlocks == kPairBlocks);
  run_grouped_block<Multiplier>(p);
}

template <class Multiplier>
constexpr auto grouped_kernel_of() {
  if constexpr (Multiplier::Tile::kBlocks == 1) {
    return &grouped_kernel<Multiplier>;
  } else {
    return &grouped_pair_kernel<Multiplier>;
  }
}

}  // namespace onerec::cuda::kernels
