// The grouped matrix product of FP8 codes with block scales, tokens being the rows of the matrix instruction: for
// experts of many tokens.
//
// Each warpgroup multiplies 64 of the tile's 128 tokens with all of its weights, 128 per wave. A thread holds two
// tokens' sums, so that the scales of a step are few; and weights come in the order in which its columns of the result
// are neighbours (direct_tiles.h), so that results need no shared memory and no exchange, and warpgroups never wait for
// each other. One begins some steps ahead: the tensor cores then have the other's products while it stores its tile.
// Where tiles are the thread that brings them works out: with nothing to multiply, the tensor cores would wait for it.
#pragma once

#include "backends/cuda/gemm/grouped_pair.cuh"
#include "backends/cuda/gemm/product_swiglu.cuh"

namespace onerec::cuda::kernels {

// kBlocks_: of a cluster, 1 or 2.
template <GroupedResult kResult, int kBlocks_>
struct TokenRowsTile
    : GroupedShape<GroupedFormat::kFp8Block, 128, 256, kResult, kToldTiles* static_cast<int>(sizeof(ToldTile))> {
  using Shape =
      GroupedShape<GroupedFormat::kFp8Block, 128, 256, kResult, kToldTiles* static_cast<int>(sizeof(ToldTile))>;
  static constexpr bool kOrdered = true;
  static constexpr int kBlocks = kBlocks_;
  static constexpr int kMultiplierRegisters = 232;
  static constexpr int kBringerRegisters = 40;
  // Blocks of a pair bring one half each.
  static constexpr int kWeightBoxRows = kBlocks == 1 ? Shape::kWeightBoxRows : Shape::kOutputs / kPairBlocks;
  static constexpr int kTokenBoxRows = kBlocks == 1 ? Shape::kTokenBoxRows : Shape::kTokens / kPairBlocks;
  static constexpr int kWaves = 2;
  static constexpr int kWaveOutputs = Shape::kOutputs / kWaves;
  static constexpr int kGroupTokens = Shape::kTokens / Shape::kWarpgroups;
  static constexpr int kSums = kGroupTokens * kWaveOutputs / kWarpgroupThreads;  // of a thread and wave
  static constexpr int kLead = 2;  // steps by which the first warpgroup begins before the second

  static_assert(kWaveOutputs == 128, "a wave's weights share their block scales");
  static_assert(kGroupTokens == kMmaRows, "a warpgroup's tokens are the rows of one instruction");
  static_assert(kLead <= Shape::kSteps, "the lead comes out of the ring before the second warpgroup frees a step");
};

// A warpgroup's part of a tile, from the ring to the result.
template <class Tile_>
class TokenRowsMultiplier {
 public:
  using Tile = Tile_;

  __device__ __forceinline__ TokenRowsMultiplier(const GroupedParams& p, const GroupedShared<Tile>& shared)
      : p_(p),
        shared_(shared),
        group_(__shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarpgroupThreads, 0)),
        lane_(static_cast<int>(threadIdx.x) % kLanes),
        row_(static_cast<int>(threadIdx.x) / kLanes * 16 + lane_ / 4) {
    if constexpr (kPaired) empty_ = address_in_block(shared.empty, static_cast<std::uint32_t>(lane_ % kPairBlocks));
  }

  __device__ __forceinline__ void run() {
    if (group_ == 1) sync_threads(kLeadBarrier, Tile::kMultipliers);
    int lead = group_ == 0 ? (Tile::kLead < p_.depth_steps ? Tile::kLead : p_.depth_steps) : 0;
    for (int number = 0;; ++number) {
      wait_barrier(shared_.full + place_.step, place_.parity);  // of the tile's first step
      const ToldTile tile = told_tile(shared_, number);
      if (tile.expert < 0) break;
      if (kPaired && !tile.live) {
        skip(lead);
        lead = 0;
        continue;
      }
      const int waves = Tile::kSwiglu || tile.first_output + Tile::kWaveOutputs < p_.columns ? 2 : 1;
      add_up(tile.expert, tile.first_output, waves, lead);
      lead = 0;
      const std::int64_t token = tile.first_token + row_;
      if constexpr (Tile::kSwiglu) {
        store_codes(tile.first_output, token);
      } else {
        store(0, tile.first_output, token);
        if (waves == 2) store(1, tile.first_output + Tile::kWaveOutputs, token);
      }
    }
    if (lead > 0) pass_threads(kLeadBarrier, Tile::kMultipliers);  // there was no tile
  }

 private:
  static constexpr int kLanes = 32;
  static constexpr int kLeadBarrier = 1;
  static constexpr int kVectorColumns = 8;  // of a group of kResultGroup: neighbours
  static constexpr int kWaveGroups = Tile::kWaveOutputs / kResultGroup;
  static constexpr bool kPaired = Tile::kBlocks == kPairBlocks;

  __device__ __forceinline__ void release() {
    if constexpr (kPaired) {
      release_step_of_pair(empty_, place_.step);
    } else {
      release_step(shared_, place_.step);
    }
  }

  // After the `lead`th step the other warpgroup may begin; 0: it has.
  __device__ __forceinline__ void finish_step(int k, int lead) {
    place_.advance();
    if (k + 1 == lead) pass_threads(kLeadBarrier, Tile::kMultipliers);
  }

  // The other block of the pair has a tile, this one has none.
  __device__ __forceinline__ void skip(int lead) {
    for (int k = 0; k < p_.depth_steps; ++k) {
      wait_barrier(shared_.full + place_.step, place_.parity);
      release();
      finish_step(k, lead);
    }
  }

  __device__ __forceinline__ void add_up(int expert, int first_column, int waves, int lead) {
#pragma unroll
    for (int wave = 0; wave < Tile::kWaves; ++wave) {
#pragma unroll
      for (int i = 0; i < Tile::kSums; ++i) sums_[wave][i] = 0.0f;
    }
    const float* const first_scales = block_scales(p_, expert, first_column);
    const float* second_scales = first_scales;
    if (waves == 2) {
      second_scales = block_scales(p_, expert, first_column + (Tile::kSwiglu ? p_.columns : Tile::kWaveOutputs));
    }
    for (int k = 0; k < p_.depth_steps; ++k) {
      const float first_scale = __ldg(first_scales + k);
      const float second_scale = __ldg(second_scales + k);
      wait_barrier(shared_.full + place_.step, place_.parity);
      const float* const token_scales = shared_.token_scales(place_.step) + row_;
      const float upper = token_scales[0];
      const float lower = token_scales[8];
      add_wave(0, waves == 1, upper * first_scale, lower * first_scale);
      if (waves == 2) add_wave(1, true, upper * second_scale, lower * second_scale);
      finish_step(k, lead);
    }
  }

  __device__ __forceinline__ void add_wave(int wave, bool last, float upper, float lower) {
    const unsigned char* const tokens = shared_.tokens(place_.step) + group_ * Tile::kGroupTokens * kTileRowBytes;
    const unsigned char* const weights = shared_.weights(place_.step) + wave * Tile::kWaveOutputs * kTileRowBytes;
    float part[Tile::kSums];
    pin_registers(part);
    begin_mma();
    multiply_tile<true, Tile::kWaveOutputs>(tile_descriptor(tokens), tile_descriptor(weights), true, part);
    commit_mma();
    pin_registers(part);
    wait_mma<0>();
    pin_registers(part);
    if (last) release();
    float(&sums)[Tile::kSums] = sums_[wave];
#pragma unroll
    for (int i = 0; i < Tile::kSums; i += 4) {
      sums[i] = fmaf(part[i], upper, sums[i]);
      sums[i + 1] = fmaf(part[i + 1], upper, sums[i + 1]);
      sums[i + 2] = fmaf(part[i + 2], lower, sums[i + 2]);
      sums[i + 3] = fmaf(part[i + 3], lower, sums[i + 3]);
    }
  }

  // Of the sums of a wave: one of the thread's 8 columns of a group, in its first row or the one 8 behind it.
  __device__ __forceinline__ static constexpr int index_of(int group, int half, int column) {
    return group * 16 + column / 2 * 4 + half * 2 + column % 2;
  }

  // A wave's 128 columns from `first_column` on, for the tokens `token` and `token` + 8.
  __device__ __forceinline__ void store(int wave, int first_column, std::int64_t token) {
    const int column = first_column + lane_ % 4 * kVectorColumns;
#pragma unroll
    for (int group = 0; group < kWaveGroups; ++group) {
      if (column + group * kResultGroup >= p_.columns) break;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        std::uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* const sums = sums_[wave] + index_of(group, half, 2 * i);
          words[i] = bits_as<std::uint32_t>(__floats2bfloat162_rn(sums[0], sums[1]));
        }
        __nv_bfloat16* const y = p_.y + (token + half * 8) * p_.y_stride + column + group * kResultGroup;
        *reinterpret_cast<uint4*>(y) = make_uint4(words[0], words[1], words[2], words[3]);
      }
    }
  }

  __device__ __forceinline__ void store_codes(int first_column, std::int64_t token) {
    swiglu_products(sums_[0], sums_[1]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float* const sums = sums_[0];
      float largest = 0.0f;
#pragma unroll
      for (int i = half * 2; i < Tile::kSums; i += 4) {
        largest = max_or_nan(largest, max_or_nan(fabsf(sums[i]), fabsf(sums[i + 1])));
      }
      largest = max_or_nan(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
      largest = max_or_nan(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
      const float scale = e4m3_scale(largest);
      const float inverse = e4m3_inverse(scale);
      const std::int64_t row = token + half * 8;
      if (lane_ % 4 == 0) p_.code_scales[first_column / 128 * p_.code_scale_stride + row] = scale;
      std::uint8_t* const codes = p_.codes + row * p_.code_stride + first_column + lane_ % 4 * kVectorColumns;
#pragma unroll
      for (int group = 0; group < kWaveGroups; ++group) {
        std::uint32_t pairs[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* const pair = sums + index_of(group, half, 2 * i);
          pairs[i] = code_pair(pair[0] * inverse, pair[1] * inverse);
        }
        *reinterpret_cast<uint2*>(codes + group * kResultGroup) =
            make_uint2(pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16);
      }
    }
  }

  const GroupedParams& p_;
  const GroupedShared<Tile>& shared_;
  const int group_;
  const int lane_;
  const int row_;            // of the tile's tokens; the thread's other one is 8 behind it
  std::uint32_t empty_ = 0;  // see release_step_of_pair()
  RingPlace<Tile::kSteps> place_;
  float sums_[Tile::kWaves][Tile::kSums];
};

}  // namespace onerec::cuda::kernels
