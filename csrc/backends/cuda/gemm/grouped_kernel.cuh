// y = x W_e^T on the tensor cores for rows sorted by expert, sizes on the device.
//
// A block works on tiles of kOutputs outputs x kTokens rows of one expert. Weights are the rows of the matrix
// instruction and tokens its columns, so that a tile of few tokens wastes nothing. One thread brings 128 bytes of K of
// both at a time into a ring in shared memory; two warpgroups multiply, each its half of the outputs, 64 * kWaves.
// Sums of FP8 codes are added up in FP32 registers after every 128 of K, where block scales are applied.
#pragma once

#include <cuda_bf16.h>

#include "backends/cuda/gemm/grouped_mma.cuh"
#include "backends/cuda/gemm/grouped_tiles.h"
#include "backends/cuda/kernels/grid_dependency.cuh"

namespace onerec::cuda::kernels {

enum class GroupedFormat { kBf16, kFp8Channel, kFp8Block };

struct GroupedParams {
  CUtensorMap weights;         // [experts, outputs, inputs], boxes of 128 bytes x kOutputs x 1
  CUtensorMap tokens;          // [rows, inputs], boxes of 128 bytes x kTokens
  const float* weight_scales;  // [experts, outputs] or [experts, blocks of outputs, blocks of inputs] or null
  const float* token_scales;   // of row r (and block b): token_scales[b * token_scale_stride + r], or null
  std::int64_t token_scale_stride;
  const std::int32_t* offsets;  // [experts + 1], multiples of kTokens
  __nv_bfloat16* y;             // [rows, outputs], 16-byte aligned rows
  std::int64_t y_stride;
  int experts;
  int outputs;      // a multiple of 8
  int depth_steps;  // of 128 bytes of K
};

template <GroupedFormat kFormat_, int kTokens_, int kWaves_>
struct GroupedTile {
  static constexpr GroupedFormat kFormat = kFormat_;
  static constexpr int kTokens = kTokens_;
  static constexpr int kWaves = kWaves_;
  static constexpr bool kCodes = kFormat != GroupedFormat::kBf16;
  static constexpr bool kBlockScales = kFormat == GroupedFormat::kFp8Block;

  static constexpr int kWarpgroups = 2;  // that multiply
  static constexpr int kMultipliers = kWarpgroups * kWarpgroupThreads;
  static constexpr int kThreads = kMultipliers + kWarpgroupThreads;
  static constexpr int kGroupOutputs = kMmaRows * kWaves;  // of a warpgroup
  static constexpr int kOutputs = kWarpgroups * kGroupOutputs;
  static constexpr int kDepth = kTileRowBytes / (kCodes ? 1 : 2);       // elements of K in a step
  static constexpr int kSums = kMmaRows * kTokens / kWarpgroupThreads;  // of a thread and wave

  // Shared memory: the ring, where results are turned from [output][token] to [token][output], scales, barriers.
  static constexpr int kWeightBytes = kOutputs * kTileRowBytes;
  static constexpr int kTokenBytes = kTokens * kTileRowBytes;
  static constexpr int kScaleBytes = kBlockScales ? kTokens * 4 : 0;
  static constexpr int kStepBytes = kWeightBytes + kTokenBytes;
  static constexpr int kTurnTokens = kTokens < 64 ? kTokens : 64;
  static constexpr int kTurnBytes = kTurnTokens * kTileRowBytes;  // of a warpgroup: 64 outputs of BF16 per token
  static constexpr int kAlignment = 1024;
  static constexpr int kMostSharedBytes = 227 * 1024;
  static constexpr int kMostSteps = 8;
  static constexpr int kFittingSteps =
      (kMostSharedBytes - kAlignment - kWarpgroups * kTurnBytes) / (kStepBytes + kScaleBytes + 16);
  static constexpr int kSteps = kFittingSteps < kMostSteps ? kFittingSteps : kMostSteps;  // in the ring
  static constexpr int kSharedBytes = kAlignment + kSteps * (kStepBytes + kScaleBytes + 16) + kWarpgroups * kTurnBytes;

  static_assert(kSteps >= 3 && kSharedBytes <= kMostSharedBytes, "the ring must fit");
  static_assert(kStepBytes % kAlignment == 0 && kWeightBytes % kAlignment == 0, "tiles start at multiples of 1024");
  static_assert(128 % kGroupOutputs == 0, "the outputs of a warpgroup share their block scales");
};

template <class Tile>
struct GroupedShared {
  unsigned char* ring;
  unsigned char* turn;
  float* scales;
  std::uint64_t* full;
  std::uint64_t* empty;

  __device__ __forceinline__ explicit GroupedShared(unsigned char* memory) {
    const std::uint32_t past = shared_address(memory) % Tile::kAlignment;
    ring = memory + (past == 0 ? 0 : Tile::kAlignment - past);
    turn = ring + Tile::kSteps * Tile::kStepBytes;
    scales = reinterpret_cast<float*>(turn + Tile::kWarpgroups * Tile::kTurnBytes);
    full = reinterpret_cast<std::uint64_t*>(scales + Tile::kSteps * (Tile::kScaleBytes / 4));
    empty = full + Tile::kSteps;
  }

  __device__ __forceinline__ unsigned char* weights(int step) const { return ring + step * Tile::kStepBytes; }
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

// The tiles of this block; every thread that asks walks alike.
template <class Tile>
__device__ __forceinline__ auto tiles_of_block(const GroupedParams& p) {
  return GroupedTiles<Tile::kOutputs, Tile::kTokens>(p.offsets, p.experts, p.outputs, static_cast<int>(blockIdx.x),
                                                     static_cast<int>(gridDim.x));
}

// One thread.
template <class Tile>
__device__ __forceinline__ void bring_tiles(const GroupedParams& p, const GroupedShared<Tile>& shared) {
  RingPlace<Tile::kSteps> place;
  for (auto tile = tiles_of_block<Tile>(p); tile.valid(); tile.next()) {
    for (int k = 0; k < p.depth_steps; ++k) {
      std::uint64_t* const full = shared.full + place.step;
      wait_barrier(shared.empty + place.step, place.parity ^ 1);
      arrive_expecting(full, Tile::kStepBytes + Tile::kScaleBytes);
      copy_box(&p.weights, full, shared.weights(place.step), k * Tile::kDepth, tile.first_output(), tile.expert());
      copy_box(&p.tokens, full, shared.tokens(place.step), k * Tile::kDepth, tile.first_token());
      if constexpr (Tile::kBlockScales) {
        copy_bytes(p.token_scales + k * p.token_scale_stride + tile.first_token(), full,
                   shared.token_scales(place.step), Tile::kScaleBytes);
      }
      place.advance();
    }
  }
}

// A warpgroup's part of a tile, from the ring to y.
template <class Tile>
class GroupedMultiplier {
 public:
  __device__ __forceinline__ GroupedMultiplier(const GroupedParams& p, const GroupedShared<Tile>& shared)
      : p_(p),
        shared_(shared),
        group_(__shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarpgroupThreads, 0)),
        thread_(static_cast<int>(threadIdx.x) % kWarpgroupThreads) {}

  __device__ __forceinline__ void run() {
    for (auto tile = tiles_of_block<Tile>(p_); tile.valid(); tile.next()) {
      const int first_output = tile.first_output() + group_ * Tile::kGroupOutputs;
      if (first_output >= p_.outputs) {
        skip();
        continue;
      }
      if constexpr (Tile::kCodes) {
        add_up_codes(tile.expert(), first_output);
      } else {
        add_up_values();
      }
      store(tile.expert(), first_output, tile.first_token());
    }
  }

 private:
  static constexpr int kLanes = 32;

  // This warp has read the ring's step for the last time.
  __device__ __forceinline__ void release(int step) {
    __syncwarp();
    if (thread_ % kLanes == 0) arrive(shared_.empty + step);
  }

  __device__ __forceinline__ void skip() {
    for (int k = 0; k < p_.depth_steps; ++k) {
      wait_barrier(shared_.full + place_.step, place_.parity);
      release(place_.step);
      place_.advance();
    }
  }

  __device__ __forceinline__ void multiply(int wave, int step, bool first, float (&sums)[Tile::kSums]) {
    const std::uint64_t weights = tile_descriptor(shared_.weights(step) + group_ * Tile::kGroupOutputs * kTileRowBytes);
    multiply_tile<Tile::kCodes, Tile::kTokens>(weights + descriptor_step(wave * kMmaRows * kTileRowBytes),
                                               tile_descriptor(shared_.tokens(step)), first, sums);
  }

  __device__ __forceinline__ void add_up_codes(int expert, int first_output) {
#pragma unroll
    for (int wave = 0; wave < Tile::kWaves; ++wave) {
#pragma unroll
      for (int i = 0; i < Tile::kSums; ++i) sums_[wave][i] = 0.0f;
    }
    const float* weight_scales = nullptr;
    if constexpr (Tile::kBlockScales) {
      const int output_blocks = (p_.outputs + 127) / 128;
      weight_scales =
          p_.weight_scales + (static_cast<std::int64_t>(expert) * output_blocks + first_output / 128) * p_.depth_steps;
    }
    for (int k = 0; k < p_.depth_steps; ++k) {
      float weight_scale = 1.0f;
      if constexpr (Tile::kBlockScales) weight_scale = __ldg(weight_scales + k);
      wait_barrier(shared_.full + place_.step, place_.parity);
#pragma unroll
      for (int wave = 0; wave < Tile::kWaves; ++wave) {
        float part[Tile::kSums];
        pin_registers(part);
        begin_mma();
        multiply(wave, place_.step, true, part);
        commit_mma();
        pin_registers(part);
        wait_mma<0>();
        pin_registers(part);
        add_part(sums_[wave], part, weight_scale, place_.step);
      }
      release(place_.step);
      place_.advance();
    }
  }

  __device__ __forceinline__ void add_part(float (&sums)[Tile::kSums], const float (&part)[Tile::kSums],
                                           float weight_scale, int step) {
    if constexpr (Tile::kBlockScales) {
      const float* const scales = shared_.token_scales(step) + thread_ % 4 * 2;
#pragma unroll
      for (int i = 0; i < Tile::kSums; i += 4) {
        const float2 token = *reinterpret_cast<const float2*>(scales + i * 2);
        const float even = token.x * weight_scale;
        const float odd = token.y * weight_scale;
        sums[i] = fmaf(part[i], even, sums[i]);
        sums[i + 1] = fmaf(part[i + 1], odd, sums[i + 1]);
        sums[i + 2] = fmaf(part[i + 2], even, sums[i + 2]);
        sums[i + 3] = fmaf(part[i + 3], odd, sums[i + 3]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < Tile::kSums; ++i) sums[i] += part[i];
    }
  }

  // The tensor cores add BF16 products up in FP32; a step stays under way while the next is issued.
  __device__ __forceinline__ void add_up_values() {
    int last = 0;
    for (int k = 0; k < p_.depth_steps; ++k) {
      wait_barrier(shared_.full + place_.step, place_.parity);
#pragma unroll
      for (int wave = 0; wave < Tile::kWaves; ++wave) pin_registers(sums_[wave]);
      begin_mma();
#pragma unroll
      for (int wave = 0; wave < Tile::kWaves; ++wave) multiply(wave, place_.step, k == 0, sums_[wave]);
      commit_mma();
#pragma unroll
      for (int wave = 0; wave < Tile::kWaves; ++wave) pin_registers(sums_[wave]);
      wait_mma<1>();
      if (k > 0) release(last);
      last = place_.step;
      place_.advance();
    }
    wait_mma<0>();
#pragma unroll
    for (int wave = 0; wave < Tile::kWaves; ++wave) pin_registers(sums_[wave]);
    release(last);
  }

  __device__ __forceinline__ void store(int expert, int first_output, int first_token) {
    unsigned char* const turn = shared_.turn + group_ * Tile::kTurnBytes;
#pragma unroll
    for (int wave = 0; wave < Tile::kWaves; ++wave) {
      const int output = first_output + wave * kMmaRows;
      if constexpr (Tile::kFormat == GroupedFormat::kFp8Channel) scale_channels(wave, expert, output, first_token);
#pragma unroll
      for (int from = 0; from < Tile::kTokens; from += Tile::kTurnTokens) {
        sync_threads(group_ + 1, kWarpgroupThreads);  // the last results have been read
        turn_over(turn, wave, from);
        sync_threads(group_ + 1, kWarpgroupThreads);
        write_out(turn, output, first_token + from);
      }
    }
  }

  __device__ __forceinline__ void scale_channels(int wave, int expert, int output, int first_token) {
    const int row = output + thread_ / kLanes * 16 + thread_ % kLanes / 4;
    const int last = p_.outputs - 1;
    const float* const weight_scales = p_.weight_scales + static_cast<std::int64_t>(expert) * p_.outputs;
    const float upper = __ldg(weight_scales + (row < last ? row : last));
    const float lower = __ldg(weight_scales + (row + 8 < last ? row + 8 : last));
    const float* const token_scales = p_.token_scales + first_token + thread_ % 4 * 2;
    float(&sums)[Tile::kSums] = sums_[wave];
#pragma unroll
    for (int i = 0; i < Tile::kSums; i += 4) {
      const float even = __ldg(token_scales + i * 2);
      const float odd = __ldg(token_scales + i * 2 + 1);
      sums[i] = even * (upper * sums[i]);
      sums[i + 1] = odd * (upper * sums[i + 1]);
      sums[i + 2] = even * (lower * sums[i + 2]);
      sums[i + 3] = odd * (lower * sums[i + 3]);
    }
  }

  // Tokens [from, from + kTurnTokens) of a wave's sums as rows of 64 outputs; 16-byte chunk c of row t lies at
  // c ^ (t % 8), so that neither the stores nor the reads meet in a bank.
  __device__ __forceinline__ void turn_over(unsigned char* turn, int wave, int from) {
    const int lane = thread_ % kLanes;
    const int chunk = thread_ / kLanes * 2 + lane / 8 % 2;
#pragma unroll
    for (int at = 0; at < Tile::kTurnTokens; at += 16) {
      const float* const sums = sums_[wave] + (from + at) / 2;
      std::uint32_t matrices[4];
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(sums[2 * m], sums[2 * m + 1]);
        matrices[m] = *reinterpret_cast<const std::uint32_t*>(&pair);
      }
      const int token = at + lane / 16 * 8 + lane % 8;
      store_transposed(turn + token * kTileRowBytes + (chunk ^ lane % 8) * 16, matrices);
    }
  }

  __device__ __forceinline__ void write_out(const unsigned char* turn, int output, int first_token) {
    constexpr int kChunks = kTileRowBytes / 16;
#pragma unroll
    for (int step = 0; step < Tile::kTurnTokens * kChunks / kWarpgroupThreads; ++step) {
      const int i = step * kWarpgroupThreads + thread_;
      const int token = i / kChunks;
      const int chunk = i % kChunks;
      const int column = output + chunk * 8;
      const uint4 values = *reinterpret_cast<const uint4*>(turn + token * kTileRowBytes + (chunk ^ token % 8) * 16);
      if (column < p_.outputs) {
        *reinterpret_cast<uint4*>(p_.y + (first_token + token) * p_.y_stride + column) = values;
      }
    }
  }

  const GroupedParams& p_;
  const GroupedShared<Tile>& shared_;
  const int group_;
  const int thread_;
  RingPlace<Tile::kSteps> place_;
  float sums_[Tile::kWaves][Tile::kSums];
};

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1) grouped_kernel(const __grid_constant__ GroupedParams p) {
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
    GroupedMultiplier<Tile>(p, shared).run();
  } else {
    give_up_registers<24>();
    if (threadIdx.x == Tile::kMultipliers) bring_tiles(p, shared);
  }
}

}  // namespace onerec::cuda::kernels
