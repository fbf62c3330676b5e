// The direct kernel's parameters, its tiles, and how they come into shared memory.
#pragma once

#include <cuda_bf16.h>

#include "backends/cuda/gemm/direct_tiles.h"
#include "backends/cuda/gemm/grouped_cluster.cuh"
#include "backends/cuda/gemm/shared_words.cuh"
#include "backends/cuda/gemm/warpgroup_mma.cuh"
#include "backends/cuda/kernels/grid_dependency.cuh"
#include "backends/cuda/kernels/pending_norm.cuh"

namespace onerec::cuda::kernels {

// Where codes of y go.
struct DirectCodes {
  std::uint32_t* progress;  // kSwigluValues: the words of a DirectProgress; null: no codes
  std::uint8_t* codes;      // [rows, columns], 8-byte aligned rows
  std::int64_t stride;
  float* scales;       // [rows]
  float static_scale;  // kSwigluCodes: of all rows, a power of two
};

// The norm of the rows of y, left pending, and the one before it; of the split kernel.
struct DirectNorm {
  const float* gamma;  // [columns], 16-byte aligned; null: there is none
  std::uint8_t* codes;
  std::int64_t stride;
  float* scales;
  float unit;  // of the scales: a row's root_power() / scale
  PendingTarget target;
  PendingRows previous;
  std::int32_t* overflowed;
};

struct DirectParams {
  CUtensorMap weights;            // boxes of 128 codes of K x weight_boxes()
  CUtensorMap tokens;             // [rows, inputs], boxes of 128 codes x kTokens
  const float* weight_scales;     // [outputs], 16-byte aligned
  PendingRows tokens_norm;        // with the scales of x
  const float* bias;              // [outputs], 16-byte aligned, or null
  CUtensorMap residual_boxes;     // of the residual, 64 columns x kTokens; kAddedValues
  const __nv_bfloat16* residual;  // [rows, columns] or null, 16-byte aligned rows; of the split kernel
  std::int64_t residual_stride;
  __nv_bfloat16* y;  // [rows, columns], 16-byte aligned rows
  std::int64_t y_stride;
  const std::int32_t* live_rows;  // null: all
  int rows;                       // capacity
  int columns;                    // of the result, a multiple of kResultGroup
  int depth_steps;                // of 128 bytes of K
  DirectCodes codes;
  DirectNorm norm;
};

template <int kOutputs_, int kCluster_, DirectResult kResult_>
struct DirectTile {
  static constexpr DirectResult kResult = kResult_;
  static constexpr bool kSwiglu = is_swiglu(kResult);
  static constexpr bool kCodes = kResult == DirectResult::kSwigluCodes;
  static constexpr bool kCoding = kResult == DirectResult::kSwigluValues;  // has warps that may make codes of values
  static constexpr bool kAdded = kResult == DirectResult::kAddedValues;
  static constexpr int kTokens = 128;
  static constexpr int kOutputs = kOutputs_;
  static constexpr int kColumns = kSwiglu ? kOutputs / 2 : kOutputs;   // of the result
  static constexpr int kVectorColumns = vector_columns(kColumns);      // neighbouring columns of a thread
  static constexpr int kGroupColumns = group_columns(kVectorColumns);  // of the result
  static constexpr int kGroups = kColumns / kGroupColumns;
  static constexpr int kCluster = kCluster_;  // blocks
  // Each of them brings a part of every step's weights; where those have no such parts, all of them in turn.
  static constexpr bool kInTurns = kGroups % kCluster != 0;
  static constexpr int kPartGroups = kInTurns ? kGroups : kGroups / kCluster;
  static constexpr int kPartRows = kInTurns ? kOutputs : kOutputs / kCluster;
  static constexpr int kClusterRows = kCluster * kTokens;
  static constexpr std::uint16_t kEveryBlock = (1 << kCluster) - 1;

  static constexpr int kWarpgroups = 2;  // that multiply
  static constexpr int kMultipliers = kWarpgroups * kWarpgroupThreads;
  static constexpr int kMultiplierWarps = kMultipliers / 32;
  static constexpr int kThreads = kMultipliers + kWarpgroupThreads;
  // Of a thread, together no more than the block has.
  static constexpr int kMultiplierRegisters = kCoding ? 224 : 232;
  static constexpr int kOtherRegisters = kCoding ? 56 : 40;
  static constexpr int kSums = kMmaRows * kOutputs / kWarpgroupThreads;  // of a thread
  // A tile's results are finished in the first steps of the next one, so many groups in each.
  static constexpr int kStoreSteps = 4;
  static constexpr int kStoredGroups = kAdded && kColumns > 192 ? 1 : 0;  // at once: there are no registers for it
  static constexpr int kStepGroups = (kGroups - kStoredGroups + kStoreSteps - 1) / kStoreSteps;
  // The first warpgroup is as many steps ahead of the second, which has the tensor cores while the first one finishes.
  static constexpr int kLead = 1;

  // Shared memory: the ring; for every warp the scales and biases of the tile's weights and the scales of the warp's
  // rows, with their sums of squares; barriers; where tiles are; words that say how far warps are.
  static constexpr int kTokenBytes = kTokens * kTileRowBytes;
  static constexpr int kWeightBytes = kOutputs * kTileRowBytes;
  static constexpr int kPartBytes = kPartRows * kTileRowBytes;
  static constexpr int kStepBytes = kTokenBytes + kWeightBytes;
  static constexpr int kRowBytes = 16 * (4 + 8);  // a scale and a sum of squares for each of a warp's rows
  static constexpr int kScaleBytes = 2 * kOutputs * 4 + kRowBytes;
  static constexpr int kPanelColumns = 64;  // of the residual
  static constexpr int kPanelBytes = kTokens * kTileRowBytes;
  static constexpr int kPanelGroups = kPanelColumns / kGroupColumns;
  static constexpr int kAddedGroups = 2 * kPanelGroups;  // of the residual, in one step of the ring
  static constexpr int kTileSlots = 8;                   // more than the tiles that the ring can hold steps of
  static constexpr int kAlignment = 1024;
  static constexpr int kMostSharedBytes = 227 * 1024;
  static constexpr int kFixedBytes =
      kAlignment + kMultiplierWarps * kScaleBytes + kTileSlots * 12 + (kMultiplierWarps + 1) * 4;
  static constexpr int kSteps = (kMostSharedBytes - kFixedBytes) / (kStepBytes + 16);  // in the ring
  static constexpr int kSharedBytes = kFixedBytes + kSteps * (kStepBytes + 16);

  static_assert(kTokens == DirectProgress::kRows, "a count of stored tiles is of one block's rows");
  static_assert(kTokens == kWarpgroups * kMmaRows, "a warpgroup's tokens are the rows of one instruction");
  static_assert(kColumns % kGroupColumns == 0 && kPartBytes % kAlignment == 0, "parts are whole groups of rows");
  static_assert(!kAdded || kVectorColumns == kResultVector, "a thread reads 16 bytes of the residual");
  static_assert(2 * kPanelBytes <= kStepBytes, "two panels of the residual fit in a step");
  static_assert(kSteps >= 4 && kSharedBytes <= kMostSharedBytes, "the ring must fit");
};

// A block's tile of y.
struct DirectOrigin {
  int row;
  int column;
  int live;  // rows from there on
};

template <class Tile>
struct DirectShared {
  unsigned char* ring;
  float* scales;
  std::uint64_t* full;
  std::uint64_t* empty;
  DirectOrigin* tiles;      // by how many are left with it
  std::uint32_t* stored;    // for codes: tiles that all multiplying warps have stored, but for the last ones
  std::uint32_t* finished;  // for codes: of each multiplying warp, 1 when it has stored all

  __device__ __forceinline__ explicit DirectShared(unsigned char* memory) {
    const std::uint32_t past = shared_address(memory) % Tile::kAlignment;
    ring = memory + (past == 0 ? 0 : Tile::kAlignment - past);
    scales = reinterpret_cast<float*>(ring + Tile::kSteps * Tile::kStepBytes);
    full = reinterpret_cast<std::uint64_t*>(scales + Tile::kMultiplierWarps * (Tile::kScaleBytes / 4));
    empty = full + Tile::kSteps;
    tiles = reinterpret_cast<DirectOrigin*>(empty + Tile::kSteps);
    stored = reinterpret_cast<std::uint32_t*>(tiles + Tile::kTileSlots);
    finished = stored + 1;
  }

  __device__ __forceinline__ unsigned char* tokens(int step) const { return ring + step * Tile::kStepBytes; }
  __device__ __forceinline__ unsigned char* residual(int step, int panel) const {
    return tokens(step) + panel * Tile::kPanelBytes;
  }
  __device__ __forceinline__ unsigned char* weights(int step) const { return tokens(step) + Tile::kTokenBytes; }
  __device__ __forceinline__ DirectOrigin* tile(int left) const { return tiles + left % Tile::kTileSlots; }
  __device__ __forceinline__ float* warp_scales(int warp) const { return scales + warp * (Tile::kScaleBytes / 4); }
};

// Steps whose weights are asked for before the previous kernel ends. More of them would be in the way of the first
// step's tokens.
inline constexpr int kStepsAhead = 2;

// A place in the ring and the parity of its use.
template <class Tile>
struct DirectPlace {
  int step = 0;
  std::uint32_t parity = 0;

  __device__ __forceinline__ void advance() {
    if (++step == Tile::kSteps) {
      step = 0;
      parity ^= 1;
    }
  }
};

// The clusters of tiles of this cluster of blocks; every thread that asks walks alike.
//
// The first tile's steps are on their way before it is known how many rows are alive: it is guessed to be that of a
// call with all of them. If it is another one, or none, the steps that were begun are skipped.
template <class Tile>
class DirectWalk {
 public:
  __device__ __forceinline__ explicit DirectWalk(const DirectParams& p)
      : tile_columns_((p.columns + Tile::kColumns - 1) / Tile::kColumns),
        guess_(all(p.rows).place(cluster())),
        early_steps_(p.depth_steps < Tile::kSteps ? p.depth_steps : Tile::kSteps) {}

  __device__ __forceinline__ int guessed_column() const { return guess_.column; }  // of tiles
  __device__ __forceinline__ int guessed_row() const { return row_of(guess_); }
  __device__ __forceinline__ int early_steps() const { return early_steps_; }

  // Behind wait_for_previous_kernel(): how many rows are alive.
  __device__ __forceinline__ void start(int live_rows) {
    live_rows_ = live_rows;
    tiles_ = all(live_rows);
    index_ = cluster();
    if (valid()) place_ = tiles_.place(index_);
  }
  __device__ __forceinline__ bool guessed_right() const {
    return valid() && place_.column == guess_.column && place_.row_cluster == guess_.row_cluster;
  }

  __device__ __forceinline__ bool valid() const { return index_ < tiles_.count(); }
  __device__ __forceinline__ void next() {
    index_ += static_cast<int>(gridDim.x) / Tile::kCluster;
    if (valid()) place_ = tiles_.place(index_);
  }
  // Tiles of this block from here on.
  __device__ __forceinline__ int left() const {
    return valid() ? (tiles_.count() - index_ - 1) / (static_cast<int>(gridDim.x) / Tile::kCluster) + 1 : 0;
  }
  __device__ __forceinline__ int tile_column() const { return place_.column; }
  __device__ __forceinline__ int first_row() const { return row_of(place_); }
  __device__ __forceinline__ DirectOrigin origin() const {
    return {first_row(), place_.column * Tile::kColumns, live_rows_ - first_row()};
  }

 private:
  __device__ __forceinline__ static int cluster() { return static_cast<int>(blockIdx.x) / Tile::kCluster; }
  __device__ __forceinline__ static int row_of(const DirectTiles::Place& place) {
    return place.row_cluster * Tile::kClusterRows + static_cast<int>(blockIdx.x) % Tile::kCluster * Tile::kTokens;
  }
  __device__ __forceinline__ DirectTiles all(int rows) const { return {rows, Tile::kClusterRows, tile_columns_}; }

  int tile_columns_;
  DirectTiles::Place guess_;
  int early_steps_;
  DirectTiles tiles_{0, Tile::kClusterRows, 1};
  int live_rows_ = 0;
  int index_ = 0;
  DirectTiles::Place place_{0, 0};
};

__device__ __forceinline__ int live_rows_of(const DirectParams& p) {
  return p.live_rows == nullptr ? p.rows : *p.live_rows;
}

// Of every thread of the cluster, behind publish_barriers(): all blocks' barriers can be used.
__device__ __forceinline__ void meet_cluster() {
  asm volatile("barrier.cluster.arrive.relaxed;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

// One thread of each block: brings its own tokens, and its part of the weights to all blocks of the cluster. A step may
// be filled when the multipliers of all blocks have released it. A block waits for the same bytes whoever brings them;
// they may come before it has announced them, since no phase ends without its own arrival.
template <class Tile>
class DirectProducer {
 public:
  __device__ __forceinline__ DirectProducer(const DirectParams& p, const DirectShared<Tile>& shared)
      : p_(p),
        shared_(shared),
        rank_(rank_in_cluster()),
        steps_to_stored_(p.depth_steps + Tile::kStoreSteps + Tile::kSteps) {}

  __device__ __forceinline__ void run() {
    DirectWalk<Tile> walk(p_);
    const int early = walk.early_steps();
    const int ahead = early < kStepsAhead ? early : kStepsAhead;
    for (int k = 0; k < ahead; ++k) begin_step(k, k, walk.guessed_column());
    wait_for_previous_kernel();
    for (int k = 0; k < early; ++k) {
      if (k >= ahead) begin_step(k, k, walk.guessed_column());
      bring_tokens(k, walk.guessed_row());
    }
    walk.start(live_rows_of(p_));  // arrives behind the first copies
    int begun = walk.guessed_right() ? early : 0;
    const int tiles = walk.left();
    for (int left = tiles; left > 0; --left, walk.next()) {
      for (int k = 0; k < p_.depth_steps; ++k) {
        if (begun > 0) {
          --begun;
        } else {
          wait_barrier(shared_.empty + place_.step, place_.parity ^ 1);
          // The multipliers see it with the step. Those of the first tile have worked it out.
          if (k == 0 && left < tiles) *shared_.tile(left) = walk.origin();
          begin_step(place_.step, k, walk.tile_column());
          bring_tokens(k, walk.first_row());
        }
        if constexpr (Tile::kCoding) count_step();
      }
      if constexpr (Tile::kAdded) bring_residual(walk.origin());
    }
    // The other blocks arrive here as long as they multiply: this block must not end before.
    for (int i = 0; i < Tile::kSteps; ++i) {
      wait_barrier(shared_.empty + place_.step, place_.parity ^ 1);
      place_.advance();
    }
  }

 private:
  __device__ __forceinline__ void begin_step(int step, int k, int tile_column) const {
    std::uint64_t* const full = shared_.full + step;
    arrive_expecting(full, Tile::kStepBytes);
    if (Tile::kInTurns && k % Tile::kCluster != rank_) return;
    const int part = Tile::kInTurns ? 0 : rank_;
    copy_groups(&p_.weights, full, shared_.weights(step) + part * Tile::kPartBytes, k * kTileRowBytes,
                tile_column * Tile::kGroups + part * Tile::kPartGroups, Tile::kEveryBlock);
  }

  __device__ __forceinline__ void bring_tokens(int k, int first_row) {
    copy_box(&p_.tokens, shared_.full + place_.step, shared_.tokens(place_.step), k * kTileRowBytes, first_row);
    place_.advance();
  }

  __device__ __forceinline__ void bring_residual(const DirectOrigin& tile) {
    constexpr int kPanels = (Tile::kColumns + Tile::kPanelColumns - 1) / Tile::kPanelColumns;
    for (int first = 0; first < kPanels; first += 2) {
      wait_barrier(shared_.empty + place_.step, place_.parity ^ 1);
      const int panels = kPanels - first < 2 ? 1 : 2;
      std::uint64_t* const full = shared_.full + place_.step;
      arrive_expecting(full, panels * Tile::kPanelBytes);
      for (int panel = 0; panel < panels; ++panel) {
        copy_box(&p_.residual_boxes, full, shared_.residual(place_.step, panel),
                 tile.column + (first + panel) * Tile::kPanelColumns, tile.row);
      }
      place_.advance();
    }
  }

  // A multiplying warp releases step kStoreSteps of a tile, or the last one of fewer, when it has stored the tile
  // before; that place in the ring has been waited for once it is filled again.
  __device__ __forceinline__ void count_step() {
    if (--steps_to_stored_ > 0) return;
    steps_to_stored_ = p_.depth_steps;
    publish_in_block(shared_.stored, ++stored_);
  }

  const DirectParams& p_;
  const DirectShared<Tile>& shared_;
  const int rank_;
  DirectPlace<Tile> place_;
  int steps_to_stored_;  // until one more tile is known to be stored
  std::uint32_t stored_ = 0;
};

}  // namespace onerec::cuda::kernels
