// The split kernel's tiles, and how they come into shared memory.
#pragma once

#include "backends/cuda/gemm/direct_ring.cuh"
#include "backends/cuda/gemm/split_tiles.h"

namespace onerec::cuda::kernels {

template <int kOutputs_, int kShare_, int kParts_, bool kNormed_ = false>
struct SplitTile {
  static constexpr int kTokens = 128;
  static constexpr int kOutputs = kOutputs_;
  static constexpr int kShare = kShare_;            // row tiles of a cluster: their blocks share what they load of W
  static constexpr int kParts = kParts_;            // of K
  static constexpr bool kNormed = kNormed_;         // y is followed by codes of its norm
  static constexpr int kCluster = kShare * kParts;  // blocks; those of a row tile are neighbours
  static constexpr int kClusterRows = kShare * kTokens;
  static constexpr int kGroups = kOutputs / kSplitGroup;
  static constexpr int kUnits = split_units(kOutputs);
  static constexpr int kOwnedUnits = owned_units(kOutputs, kParts);

  static constexpr int kWarpgroups = 2;  // that multiply
  static constexpr int kMultipliers = kWarpgroups * kWarpgroupThreads;
  static constexpr int kMultiplierWarps = kMultipliers / 32;
  static constexpr int kThreads = kMultipliers + 32;
  static constexpr int kSums = kMmaRows * kOutputs / kWarpgroupThreads;  // of a thread
  static constexpr int kUnitBytes = kMultipliers * 16;

  // Shared memory: the ring, scales and biases of the tile's weights, barriers. Some is left to the kernel ahead, so
  // that this one is there with its first weights when that one ends.
  static constexpr int kTokenBytes = kTokens * kTileRowBytes;
  static constexpr int kWeightBytes = kOutputs * kTileRowBytes;
  static constexpr int kStepBytes = kTokenBytes + kWeightBytes;
  static constexpr int kAlignment = 1024;
  static constexpr int kMostSharedBytes = 214 * 1024;
  static constexpr int kScaleBytes = (kNormed ? 3 : 2) * kOutputs * 4;
  static constexpr int kExchangeBarriers = 1 + kWarpgroups;
  static constexpr int kFixedBytes = kAlignment + kScaleBytes + kExchangeBarriers * 8;
  static constexpr int kSteps = (kMostSharedBytes - kFixedBytes) / (kStepBytes + 16);  // in the ring
  static constexpr int kSharedBytes = kFixedBytes + kSteps * (kStepBytes + 16);

  static_assert(kTokens == kWarpgroups * kMmaRows, "a warpgroup's tokens are the rows of one instruction");
  static_assert(kOutputs % kSplitGroup == 0 && kWeightBytes % kAlignment == 0, "tiles are whole groups of rows");
  static_assert(kUnits % kParts == 0, "every block owns as many units");
  static_assert(kSteps >= kParts + 1, "what is received takes steps whose products are done: receiving_step()");
  static_assert(kParts == 1 || kOwnedUnits * kUnitBytes <= kStepBytes, "what is received from a block takes one step");
};

template <class Tile>
struct SplitShared {
  unsigned char* ring;
  float* scales;  // [kOutputs], behind them the biases, and the factors of the norm
  std::uint64_t* full;
  std::uint64_t* empty;
  std::uint64_t* open;      // the other parts' blocks can take this one's sums
  std::uint64_t* received;  // of each warpgroup: the other parts' sums are here

  __device__ __forceinline__ explicit SplitShared(unsigned char* memory) {
    const std::uint32_t past = shared_address(memory) % Tile::kAlignment;
    ring = memory + (past == 0 ? 0 : Tile::kAlignment - past);
    scales = reinterpret_cast<float*>(ring + Tile::kSteps * Tile::kStepBytes);
    full = reinterpret_cast<std::uint64_t*>(scales + Tile::kScaleBytes / 4);
    empty = full + Tile::kSteps;
    open = empty + Tile::kSteps;
    received = open + 1;
  }

  __device__ __forceinline__ unsigned char* step(int step) const { return ring + step * Tile::kStepBytes; }
  __device__ __forceinline__ unsigned char* tokens(int i) const { return step(i); }
  __device__ __forceinline__ unsigned char* weights(int i) const { return step(i) + Tile::kTokenBytes; }
};

// Where this block stands: a part of K of a tile.
template <class Tile>
struct SplitPlace {
  int share;  // row tile of the cluster
  int part;
  int cluster_row;   // the cluster's first row
  int first_row;     // this block's
  int first_column;  // of y
  DepthRange depth;

  __device__ __forceinline__ explicit SplitPlace(const DirectParams& p) {
    const int rank = Tile::kCluster == 1 ? 0 : rank_in_cluster();
    share = rank / Tile::kParts;
    part = rank % Tile::kParts;
    const int cluster = static_cast<int>(blockIdx.x) / Tile::kCluster;
    const int row_clusters = (p.rows + Tile::kClusterRows - 1) / Tile::kClusterRows;
    cluster_row = cluster % row_clusters * Tile::kClusterRows;
    first_row = cluster_row + share * Tile::kTokens;
    first_column = cluster / row_clusters * Tile::kOutputs;
    depth = depth_range(p.depth_steps, part, Tile::kParts);
  }

  // The rank in the cluster of the block of another row tile or part of K.
  __device__ __forceinline__ static std::uint32_t rank_of(int share, int part) {
    return static_cast<std::uint32_t>(share * Tile::kParts + part);
  }
};

// Makes the barrier's present phase wait for `bytes` more bytes of copies.
__device__ __forceinline__ void expect_bytes(std::uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

// One thread of each block: brings its own tokens and, in turns with the blocks that share them, the weights. The
// first weights come before the previous kernel ends.
template <class Tile>
class SplitProducer {
 public:
  __device__ __forceinline__ SplitProducer(const DirectParams& p, const SplitShared<Tile>& shared)
      : p_(p), shared_(shared), place_(p) {}

  __device__ __forceinline__ void run() const {
    const int early = place_.depth.count < Tile::kSteps ? place_.depth.count : Tile::kSteps;
    const int ahead = early < kStepsAhead ? early : kStepsAhead;
    for (int k = 0; k < ahead; ++k) bring_weights(k, k);
    wait_for_previous_kernel();
    for (int k = 0; k < early; ++k) {
      if (k >= ahead) bring_weights(k, k);
      bring_tokens(k, k);
    }
    if (place_.cluster_row >= live_rows_of(p_)) {  // arrives behind the first copies
      // Copies into this block must not outlive it.
      for (int k = 0; k < early; ++k) wait_barrier(shared_.full + k, 0);
      return;
    }
    DirectPlace<Tile> at;
    for (int k = 0; k < early; ++k) at.advance();
    for (int k = early; k < place_.depth.count; ++k) {
      wait_barrier(shared_.empty + at.step, at.parity ^ 1);
      bring_weights(at.step, k);
      bring_tokens(at.step, k);
      at.advance();
    }
    // The blocks that share the weights arrive here as long as they multiply: this block must not end before.
    for (int i = 0; i < Tile::kSteps; ++i) {
      wait_barrier(shared_.empty + at.step, at.parity ^ 1);
      at.advance();
    }
  }

 private:
  __device__ __forceinline__ int depth_column(int k) const { return (place_.depth.first + k) * kTileRowBytes; }

  __device__ __forceinline__ void bring_weights(int step, int k) const {
    std::uint64_t* const full = shared_.full + step;
    expect_bytes(full, Tile::kWeightBytes);
    const int group = place_.first_column / kSplitGroup;
    if constexpr (Tile::kShare == 1) {
      copy_groups(&p_.weights, full, shared_.weights(step), depth_column(k), group);
    } else if (k % Tile::kShare == place_.share) {
      std::uint32_t blocks = 0;
      for (int share = 0; share < Tile::kShare; ++share) blocks |= 1u << place_.rank_of(share, place_.part);
      copy_groups(&p_.weights, full, shared_.weights(step), depth_column(k), group, static_cast<std::uint16_t>(blocks));
    }
  }

  __device__ __forceinline__ void bring_tokens(int step, int k) const {
    std::uint64_t* const full = shared_.full + step;
    arrive_expecting(full, Tile::kTokenBytes);
    copy_box(&p_.tokens, full, shared_.tokens(step), depth_column(k), place_.first_row);
  }

  const DirectParams& p_;
  const SplitShared<Tile>& shared_;
  const SplitPlace<Tile> place_;
};

}  // namespace onerec::cuda::kernels
