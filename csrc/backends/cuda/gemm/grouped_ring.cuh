// What the kernels of the grouped matrix product share: their parameters, and how tiles come into shared memory.
//
// A block works on tiles of kOutputs rows of one expert's weight x kTokens of its rows of x. One thread brings 128
// bytes of K of both at a time into a ring in shared memory; two warpgroups multiply.
#pragma once

#include <cuda_bf16.h>

#include "backends/cuda/gemm/direct_tiles.h"
#include "backends/cuda/gemm/grouped_cluster.cuh"
#include "backends/cuda/gemm/grouped_tiles.h"
#include "backends/cuda/gemm/warpgroup_mma.cuh"
#include "backends/cuda/kernels/boxes_once.cuh"

namespace onerec::cuda::kernels {

enum class GroupedFormat { kBf16, kFp8Channel, kFp8Block };

enum class GroupedResult {
  kValues,       // y, BF16
  kSwigluCodes,  // codes of silu(gate) * up with a scale per row and 128 columns: gates and ups are a weight's halves
};

struct GroupedParams {
  CUtensorMap weights;         // [experts, outputs, inputs], boxes of 128 bytes x kWeightBoxRows x 1; if the tile
                               // wants them ordered: weight_boxes() of experts * outputs rows
  CUtensorMap tokens;          // [rows, inputs], boxes of 128 bytes x kTokenBoxRows
  const float* weight_scales;  // [experts, outputs] or [experts, blocks of outputs, blocks of inputs] or null
  const float* token_scales;   // of row r (and block b): token_scales[b * token_scale_stride + r], or null
  std::int64_t token_scale_stride;
  const std::int32_t* offsets;  // [experts + 1], multiples of kTokens
  int experts;
  int outputs;              // of the weight, a multiple of 8
  int depth_steps;          // of 128 bytes of K
  int columns;              // of the result: the outputs, or half of them, then a multiple of 128
  int single_tile_experts;  // all of them if most have one tile of tokens each, else 0

  // kValues.
  __nv_bfloat16* y;  // [rows, columns], 16-byte aligned rows
  std::int64_t y_stride;

  // kSwigluCodes.
  std::uint8_t* codes;  // [rows, columns], 16-byte aligned rows
  std::int64_t code_stride;
  float* code_scales;  // of row r and block b: code_scales[b * code_scale_stride + r]
  std::int64_t code_scale_stride;
};

// Sizes of a tile and of the ring. kEpilogueBytes: shared memory for results, a multiple of 16.
template <GroupedFormat kFormat_, int kTokens_, int kOutputs_, GroupedResult kResult_, int kEpilogueBytes_>
struct GroupedShape {
  static constexpr GroupedFormat kFormat = kFormat_;
  static constexpr int kTokens = kTokens_;
  static constexpr int kOutputs = kOutputs_;
  static constexpr bool kCodes = kFormat != GroupedFormat::kBf16;
  static constexpr bool kBlockScales = kFormat == GroupedFormat::kFp8Block;
  // Half of the tile's weights are gates, the other half the ups of the same columns.
  static constexpr bool kSwiglu = kResult_ == GroupedResult::kSwigluCodes;
  static constexpr int kColumns = kSwiglu ? kOutputs / 2 : kOutputs;  // of the result
  static constexpr int kBlocks = 1;                                   // of a cluster
  static constexpr bool kReadOnce = false;  // an expert has a tile of tokens, so that its weights are read once
  static constexpr bool kOrdered = false;   // weights come as weight_boxes() has them, and tiles are told
  static constexpr int kWeightBoxRows = kColumns;
  static constexpr int kTokenBoxRows = kTokens;

  static constexpr int kWarpgroups = 2;  // that multiply
  static constexpr int kMultipliers = kWarpgroups * kWarpgroupThreads;
  static constexpr int kThreads = kMultipliers + kWarpgroupThreads;
  static constexpr int kMultiplierRegisters = 240;
  static constexpr int kBringerRegisters = 24;
  static constexpr int kDepth = kTileRowBytes / (kCodes ? 1 : 2);  // elements of K in a step

  // Shared memory: the ring, results, scales, barriers.
  static constexpr int kWeightBytes = kOutputs * kTileRowBytes;
  static constexpr int kTokenBytes = kTokens * kTileRowBytes;
  static constexpr int kScaleBytes = kBlockScales ? kTokens * 4 : 0;
  static constexpr int kStepBytes = kWeightBytes + kTokenBytes;
  static constexpr int kSlotBytes = kStepBytes;  // from step to step
  static constexpr int kEpilogueBytes = kEpilogueBytes_;
  static constexpr int kAlignment = 1024;
  static constexpr int kMostSharedBytes = 227 * 1024;
  static constexpr int kMostSteps = 8;
  static constexpr int kFittingSteps =
      (kMostSharedBytes - kAlignment - kEpilogueBytes) / (kStepBytes + kScaleBytes + 16);
  static constexpr int kSteps = kFittingSteps < kMostSteps ? kFittingSteps : kMostSteps;  // in the ring
  static constexpr int kSharedBytes = kAlignment + kSteps * (kStepBytes + kScaleBytes + 16) + kEpilogueBytes;

  static_assert(kSteps >= 3 && kSharedBytes <= kMostSharedBytes, "the ring must fit");
  static_assert(kStepBytes % kAlignment == 0 && kWeightBytes % kAlignment == 0, "tiles start at multiples of 1024");
  static_assert(kEpilogueBytes % 16 == 0, "scales are copied to multiples of 16");
  static_assert(!kSwiglu || (kBlockScales && kColumns == 128), "a tile holds whole blocks of the result's scales");
};

template <class Tile>
struct GroupedShared {
  unsigned char* ring;
  unsigned char* results;
  float* scales;
  std::uint64_t* full;
  std::uint64_t* empty;

  __device__ __forceinline__ explicit GroupedShared(unsigned char* memory) {
    const std::uint32_t past = shared_address(memory) % Tile::kAlignment;
    ring = memory + (past == 0 ? 0 : Tile::kAlignment - past);
    results = ring + Tile::kSteps * Tile::kSlotBytes;
    scales = reinterpret_cast<float*>(results + Tile::kEpilogueBytes);
    full = reinterpret_cast<std::uint64_t*>(scales + Tile::kSteps * (Tile::kScaleBytes / 4));
    empty = full + Tile::kSteps;
  }

  __device__ __forceinline__ unsigned char* weights(int step) const { return ring + step * Tile::kSlotBytes; }
  __device__ __forceinline__ unsigned char* tokens(int step) const { return weights(step) + Tile::kWeightBytes; }
  __device__ __forceinline__ float* token_scales(int step) const { return scales + step * Tile::kTokens; }
};

// A place in the ring and the parity of its use.
template <int kSteps>
struct RingPlace {
  int step = 0;
  std::uint32_t parity = 0;

  __device__ __forceinline__ void advance() {
    if (++step == kSteps) {
      step = 0;
      parity ^= 1;
    }
  }
};

// A tile as the thread that brings it tells the multipliers.
struct ToldTile {
  int expert;  // negative: there are no more
  int first_output;
  int first_token;
  bool live;  // not of a block that has nothing to multiply while the other one of its pair has
};
inline constexpr int kToldTiles = 16;  // more than the ring can hold steps of

// One thread: tells tile `number`, ahead of its first step.
template <class Tile>
__device__ __forceinline__ void tell_tile(const GroupedShared<Tile>& shared, int number, const ToldTile& tile) {
  reinterpret_cast<ToldTile*>(shared.results)[number % kToldTiles] = tile;
}

template <class Tile>
__device__ __forceinline__ const ToldTile& told_tile(const GroupedShared<Tile>& shared, int number) {
  return reinterpret_cast<const ToldTile*>(shared.results)[number % kToldTiles];
}

// A box of the weights of `output` and those behind it.
template <class Tile>
__device__ __forceinline__ void copy_weights(const GroupedParams& p, std::uint64_t* full, void* shared, int depth,
                                             int output, int expert) {
  if constexpr (Tile::kOrdered) {
    copy_groups(&p.weights, full, shared, depth, (expert * p.outputs + output) / kResultGroup);
  } else if constexpr (Tile::kReadOnce) {
    copy_box_once(&p.weights, full, shared, depth, output, expert);
  } else {
    copy_box(&p.weights, full, shared, depth, output, expert);
  }
}

// The tiles of this block; every thread that asks walks alike.
template <class Tile>
__device__ __forceinline__ auto tiles_of_block(const GroupedParams& p) {
  return GroupedTiles<Tile::kColumns, Tile::kTokens>(p.offsets, p.experts, p.columns, static_cast<int>(blockIdx.x),
                                                     static_cast<int>(gridDim.x));
}

// Asks for what copy_weights() with this place brings, for L2.
template <class Tile>
__device__ __forceinline__ void ask_for_weights(const GroupedParams& p, int depth, int output, int expert) {
  if constexpr (Tile::kReadOnce) {
    prefetch_box_once(&p.weights, depth, output, expert);
  } else {
    prefetch_box(&p.weights, depth, output, expert);
  }
}

// One thread, before the offsets can be read: asks L2 for as much of the block's first tile of weights as the ring
// holds, on the guess that every expert has one tile of tokens. While rows are routed and gathered, memory has little
// to do.
template <class Tile>
__device__ __forceinline__ void ask_for_first_weights(const GroupedParams& p) {
  if constexpr (Tile::kOrdered) return;  // tiles of many tokens
  const int output_tiles = (p.columns + Tile::kColumns - 1) / Tile::kColumns;
  const int expert = static_cast<int>(blockIdx.x) / output_tiles;
  const int output = static_cast<int>(blockIdx.x) % output_tiles * Tile::kColumns;
  if (expert >= p.single_tile_experts) return;
  for (int k = 0; k < min(Tile::kSteps, p.depth_steps); ++k) {
    ask_for_weights<Tile>(p, k * Tile::kDepth, output, expert);
    if constexpr (Tile::kSwiglu) ask_for_weights<Tile>(p, k * Tile::kDepth, p.columns + output, expert);
  }
}

// One thread, behind the last tile.
template <class Tile>
__device__ __forceinline__ void tell_end(const GroupedShared<Tile>& shared, const RingPlace<Tile::kSteps>& place,
                                         int number) {
  wait_barrier(shared.empty + place.step, place.parity ^ 1);
  tell_tile(shared, number, {-1, 0, 0, false});
  arrive(shared.full + place.step);
}

// The weights of a tile's step `k`, for the ring's `step`.
template <class Tile>
__device__ __forceinline__ void bring_weights(const GroupedParams& p, const GroupedShared<Tile>& shared, int step,
                                              int k, int expert, int output) {
  unsigned char* const weights = shared.weights(step);
  copy_weights<Tile>(p, shared.full + step, weights, k * Tile::kDepth, output, expert);
  if constexpr (Tile::kSwiglu) {
    copy_weights<Tile>(p, shared.full + step, weights + Tile::kWeightBoxRows * kTileRowBytes, k * Tile::kDepth,
                       p.columns + output, expert);
  }
}

template <class Tile>
__device__ __forceinline__ void bring_tokens(const GroupedParams& p, const GroupedShared<Tile>& shared, int step, int k,
                                             int token) {
  copy_box(&p.tokens, shared.full + step, shared.tokens(step), k * Tile::kDepth, token);
  if constexpr (Tile::kBlockScales) {
    copy_bytes(p.token_scales + k * p.token_scale_stride + token, shared.full + step, shared.token_scales(step),
               Tile::kScaleBytes);
  }
}

// One thread.
template <class Tile>
__device__ __forceinline__ void bring_tiles(const GroupedParams& p, const GroupedShared<Tile>& shared) {
  RingPlace<Tile::kSteps> place;
  int number = 0;
  for (auto tile = tiles_of_block<Tile>(p); tile.valid(); tile.next(), ++number) {
    for (int k = 0; k < p.depth_steps; ++k) {
      wait_barrier(shared.empty + place.step, place.parity ^ 1);
      if constexpr (Tile::kOrdered) {
        if (k == 0) tell_tile(shared, number, {tile.expert(), tile.first_output(), tile.first_token(), true});
      }
      arrive_expecting(shared.full + place.step, Tile::kStepBytes + Tile::kScaleBytes);
      bring_weights(p, shared, place.step, k, tile.expert(), tile.first_output());
      bring_tokens(p, shared, place.step, k, tile.first_token());
      place.advance();
    }
  }
  if constexpr (Tile::kOrdered) tell_end(shared, place, number);
}

// This warp has read the ring's step for the last time.
template <class Tile>
__device__ __forceinline__ void release_step(const GroupedShared<Tile>& shared, int step) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) arrive(shared.empty + step);
}

// Scales of blocks for the outputs from `output` on, one per step of K.
__device__ __forceinline__ const float* block_scales(const GroupedParams& p, int expert, int output) {
  const int output_blocks = (p.outputs + 127) / 128;
  return p.weight_scales + (static_cast<std::int64_t>(expert) * output_blocks + output / 128) * p.depth_steps;
}

}  // namespace onerec::cuda::kernels
