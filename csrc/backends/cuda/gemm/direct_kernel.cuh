// y = x W^T of FP8 codes with a scale per row of x and per row of W, or its SwiGLU: for many rows.
//
// A tile is 128 tokens x up to 256 outputs. Two warpgroups multiply 64 tokens each with all of the tile's weights; sums
// stay in the tensor cores' registers over all of K. Where the time goes otherwise:
// * What tiles take from the L2 cache: the blocks of a cluster have neighbouring tokens and the same weights, of which
//   each brings a part to all of them, or all of every other step.
// * Results: stored from registers, 8 or 16 bytes per thread and four times that of a row at a time, since the copy
//   engine brings the weights in the order in which this comes out (direct_tiles.h). No shared memory, and no barrier
//   between the warpgroups.
// * Multiprocessors without a tile: 512 rows x 14336 outputs are 224 tiles of 256 outputs, two each for 92 of 132
//   multiprocessors and one for the others. In 256 tiles of 224 outputs nearly all have two, which are smaller. Hence
//   several widths.
// * The end of a tile, where the tensor cores have nothing to do: sums are scaled and rounded, no more. Storing them,
//   and SwiGLU, wait until the next tile's products are under way; a residual comes through the ring as one more step
//   of the tile; where the next tile is the loading thread has worked out. The second warpgroup is a step behind the
//   first.
// * Codes of the result, where they are asked for: by a scale that is known beforehand they are what is stored. Else
// they
//   are made while later tiles are multiplied (direct_codes.cuh).
// * The start: the first weights are brought before the previous kernel has ended.
#pragma once

#include "backends/cuda/gemm/direct_codes.cuh"
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
  if constexpr (Tile::kCoding) {
    if (threadIdx.x == 0) *shared.stored = 0;
    if (threadIdx.x < Tile::kMultiplierWarps) shared.finished[threadIdx.x] = 0;
    __syncthreads();
  }
  __syncwarp();
  meet_cluster();
  const bool coded = Tile::kCoding && p.codes.progress != nullptr;
  if (threadIdx.x < Tile::kMultipliers) {
    take_registers<Tile::kMultiplierRegisters>();
    DirectMultiplier<Tile>(p, shared).run();
    if constexpr (Tile::kCoding) {
      if (coded) help_to_code<Tile>(p, shared);
    }
  } else {
    give_up_registers<Tile::kOtherRegisters>();
    const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0) - Tile::kMultiplierWarps;
    if (threadIdx.x == Tile::kMultipliers) {
      DirectProducer<Tile>(p, shared).run();
    } else if (!coded || warp == 0 || warp > 1 + kCodingWarps) {
      wait_for_previous_kernel();
    } else if constexpr (Tile::kCoding) {
      if (warp == 1) {
        report_tiles(p, shared);
      } else {
        code_rows(p, shared);
      }
    }
  }
}

}  // namespace onerec::cuda::kernels
