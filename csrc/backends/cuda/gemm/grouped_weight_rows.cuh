// The grouped matrix product with weights as the rows of the matrix instruction and tokens as its columns, so that a
// tile of few tokens wastes nothing.
//
// Each warpgroup multiplies its part of the weights, 64 rows per wave. Sums of FP8 codes are added up in FP32 registers
// after every 128 of K, where block scales are applied.
#pragma once

#include "backends/cuda/gemm/grouped_ring.cuh"
#include "backends/cuda/gemm/product_swiglu.cuh"

namespace onerec::cuda::kernels {

// Values are turned from [output][token] to [token][output] by each warpgroup on its own, 64 tokens at a time.
constexpr int turned_tokens(int tokens) { return tokens < 64 ? tokens : 64; }

// Codes are turned by the block as a whole; largest magnitudes of each warp's columns, and what codes are multiplied
// by.
constexpr int weight_rows_epilogue(GroupedResult result, int tokens) {
  return result == GroupedResult::kValues ? 2 * turned_tokens(tokens) * kTileRowBytes
                                          : tokens * kTileRowBytes + (8 + 1) * tokens * 4;
}

template <GroupedFormat kFormat_, int kTokens_, int kWaves_, GroupedResult kResult = GroupedResult::kValues,
          int kEpilogueBytes_ = weight_rows_epilogue(kResult, kTokens_)>
struct WeightRowsTile : GroupedShape<kFormat_, kTokens_, 2 * kWaves_ * kMmaRows, kResult, kEpilogueBytes_> {
  using Shape = GroupedShape<kFormat_, kTokens_, 2 * kWaves_ * kMmaRows, kResult, kEpilogueBytes_>;
  static constexpr int kWaves = kWaves_;
  static constexpr int kGroupColumns = Shape::kColumns / Shape::kWarpgroups;  // of a warpgroup
  static constexpr int kSums = kMmaRows * kTokens_ / kWarpgroupThreads;       // of a thread and wave
  static constexpr int kTurnTokens = turned_tokens(kTokens_);
  static constexpr int kTurnBytes = kTurnTokens * kTileRowBytes;  // of a warpgroup: 64 outputs of BF16 per token

  // Where in the tile a warpgroup's wave of weights begins. With SwiGLU its waves are gates and their ups.
  static constexpr int first_row(int group, int wave) {
    return Shape::kSwiglu ? wave * Shape::kColumns + group * kMmaRows : group * kGroupColumns + wave * kMmaRows;
  }

  static_assert(128 % kGroupColumns == 0, "the outputs of a warpgroup share their block scales");
  static_assert(!Shape::kSwiglu || kWaves == 2, "a wave of gates and a wave of ups");
};

// A warpgroup's part of a tile, from the ring to the result.
template <class Tile_>
class WeightRowsMultiplier {
 public:
  using Tile = Tile_;

  __device__ __forceinline__ WeightRowsMultiplier(const GroupedParams& p, const GroupedShared<Tile>& shared)
      : p_(p),
        shared_(shared),
        group_(__shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarpgroupThreads, 0)),
        thread_(static_cast<int>(threadIdx.x) % kWarpgroupThreads) {}

  __device__ __forceinline__ void run() {
    for (auto tile = tiles_of_block<Tile>(p_); tile.valid(); tile.next()) {
      make_tile(tile.expert(), tile.first_output(), tile.first_token());
    }
  }

  // Of what comes through the ring from place() on.
  __device__ __forceinline__ void make_tile(int expert, int first_output, int first_token) {
    const int first_column = first_output + group_ * Tile::kGroupColumns;
    if (first_column >= p_.columns) return skip();
    if constexpr (Tile::kCodes) {
      add_up_codes(expert, first_column);
    } else {
      add_up_values();
    }
    if constexpr (Tile::kSwiglu) {
      store_codes(first_output, first_token);
    } else {
      store(expert, first_column, first_token);
    }
  }

  __device__ __forceinline__ RingPlace<Tile::kSteps>& place() { return place_; }

  // Waits for both warpgroups.
  __device__ __forceinline__ static void sync_multipliers() { sync_threads(kBothGroups, Tile::kMultipliers); }

 private:
  static constexpr int kLanes = 32;
  static constexpr int kWarps = Tile::kMultipliers / kLanes;
  static constexpr int kChunks = kTileRowBytes / 16;
  static constexpr int kBothGroups = 3;  // the named barrier; 1 and 2 are a warpgroup's own

  __device__ __forceinline__ void skip() {
    for (int k = 0; k < p_.depth_steps; ++k) {
      wait_barrier(shared_.full + place_.step, place_.parity);
      release_step(shared_, place_.step);
      place_.advance();
    }
  }

  __device__ __forceinline__ void multiply(int wave, int step, bool first, float (&sums)[Tile::kSums]) {
    const std::uint64_t weights = tile_descriptor(shared_.weights(step) + Tile::first_row(group_, 0) * kTileRowBytes);
    constexpr int kWaveRows = Tile::first_row(0, 1);
    multiply_tile<Tile::kCodes, Tile::kTokens>(weights + descriptor_step(wave * kWaveRows * kTileRowBytes),
                                               tile_descriptor(shared_.tokens(step)), first, sums);
  }

  __device__ __forceinline__ void add_up_codes(int expert, int first_column) {
#pragma unroll
    for (int wave = 0; wave < Tile::kWaves; ++wave) {
#pragma unroll
      for (int i = 0; i < Tile::kSums; ++i) sums_[wave][i] = 0.0f;
    }
    const float* first_scales = nullptr;
    const float* up_scales = nullptr;
    if constexpr (Tile::kBlockScales) first_scales = block_scales(p_, expert, first_column);
    if constexpr (Tile::kSwiglu) up_scales = block_scales(p_, expert, p_.columns + first_column);
    for (int k = 0; k < p_.depth_steps; ++k) {
      float first_scale = 1.0f;
      float up_scale = 1.0f;
      if constexpr (Tile::kBlockScales) first_scale = __ldg(first_scales + k);
      if constexpr (Tile::kSwiglu) up_scale = __ldg(up_scales + k);
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
        add_part(sums_[wave], part, Tile::kSwiglu && wave == 1 ? up_scale : first_scale, place_.step);
      }
      release_step(shared_, place_.step);
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
      if (k > 0) release_step(shared_, last);
      last = place_.step;
      place_.advance();
    }
    wait_mma<0>();
#pragma unroll
    for (int wave = 0; wave < Tile::kWaves; ++wave) pin_registers(sums_[wave]);
    release_step(shared_, last);
  }

  // --- values ---

  __device__ __forceinline__ void store(int expert, int first_output, int first_token) {
    unsigned char* const turn = shared_.results + group_ * Tile::kTurnBytes;
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
        matrices[m] = bits_as<std::uint32_t>(__floats2bfloat162_rn(sums[2 * m], sums[2 * m + 1]));
      }
      const int token = at + lane / 16 * 8 + lane % 8;
      store_transposed(turn + token * kTileRowBytes + (chunk ^ lane % 8) * 16, matrices);
    }
  }

  __device__ __forceinline__ void write_out(const unsigned char* turn, int output, int first_token) {
#pragma unroll
    for (int step = 0; step < Tile::kTurnTokens * kChunks / kWarpgroupThreads; ++step) {
      const int i = step * kWarpgroupThreads + thread_;
      const int token = i / kChunks;
      const int chunk = i % kChunks;
      const int column = output + chunk * 8;
      const uint4 values = *reinterpret_cast<const uint4*>(turn + token * kTileRowBytes + (chunk ^ token % 8) * 16);
      if (column < p_.columns) {
        *reinterpret_cast<uint4*>(p_.y + (first_token + token) * p_.y_stride + column) = values;
      }
    }
  }

  // --- codes of silu(gate) * up: 128 columns, of which each warp holds 16 ---

  // Both warpgroups. Its three barriers also keep the next tile's results from those that are still being read.
  __device__ __forceinline__ void store_codes(int first_column, int first_token) {
    float* const maxima = reinterpret_cast<float*>(shared_.results + Tile::kTokens * kTileRowBytes);
    float* const inverses = maxima + kWarps * Tile::kTokens;
    swiglu_products(sums_[0], sums_[1]);
    find_maxima(maxima);
    sync_multipliers();
    if (threadIdx.x < Tile::kTokens) {
      const int token = static_cast<int>(threadIdx.x);
      float largest = 0.0f;
#pragma unroll
      for (int warp = 0; warp < kWarps; ++warp) largest = max_or_nan(largest, maxima[warp * Tile::kTokens + token]);
      const float scale = e4m3_scale(largest);
      inverses[token] = e4m3_inverse(scale);
      p_.code_scales[first_column / 128 * p_.code_scale_stride + first_token + token] = scale;
    }
    sync_multipliers();
    turn_codes(inverses);
    sync_multipliers();
    write_codes(first_column, first_token);
  }

  // maxima[warp][token] of the warp's columns.
  __device__ __forceinline__ void find_maxima(float* maxima) {
    const int lane = thread_ % kLanes;
    float* const of_warp = maxima + static_cast<int>(threadIdx.x) / kLanes * Tile::kTokens + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < Tile::kSums; i += 4) {
      float even = max_or_nan(fabsf(sums_[0][i]), fabsf(sums_[0][i + 2]));
      float odd = max_or_nan(fabsf(sums_[0][i + 1]), fabsf(sums_[0][i + 3]));
#pragma unroll
      for (int step = 4; step < kLanes; step *= 2) {
        even = max_or_nan(even, __shfl_xor_sync(0xffffffffu, even, step));
        odd = max_or_nan(odd, __shfl_xor_sync(0xffffffffu, odd, step));
      }
      if (lane < 4) *reinterpret_cast<float2*>(of_warp + i * 2) = make_float2(even, odd);
    }
  }

  // A 16-byte chunk holds a warp's 16 columns of a token: columns c and c + 8 side by side, as a thread has them.
  __device__ __forceinline__ void turn_codes(const float* inverses) {
    constexpr int kMatrices = Tile::kTokens < 32 ? 2 : 4;  // of 8 tokens
    const int lane = thread_ % kLanes;
    const int chunk = static_cast<int>(threadIdx.x) / kLanes;
#pragma unroll
    for (int at = 0; at < Tile::kTokens; at += 8 * kMatrices) {
      std::uint32_t matrices[kMatrices];
#pragma unroll
      for (int m = 0; m < kMatrices; ++m) {
        const float* const sums = sums_[0] + (at + 8 * m) / 2;
        const float2 inverse = *reinterpret_cast<const float2*>(inverses + at + 8 * m + lane % 4 * 2);
        matrices[m] = code_pair(sums[0] * inverse.x, sums[2] * inverse.x) |
                      code_pair(sums[1] * inverse.y, sums[3] * inverse.y) << 16;
      }
      const int token = at + lane % (8 * kMatrices);
      store_transposed(shared_.results + token * kTileRowBytes + (chunk ^ lane % 8) * 16, matrices);
    }
  }

  __device__ __forceinline__ void write_codes(int first_column, int first_token) {
#pragma unroll
    for (int from = 0; from < Tile::kTokens * kChunks; from += Tile::kMultipliers) {
      const int i = from + static_cast<int>(threadIdx.x);
      if (Tile::kTokens * kChunks < Tile::kMultipliers && i >= Tile::kTokens * kChunks) break;
      const int token = i / kChunks;
      const int chunk = i % kChunks;
      const uint4 pairs =
          *reinterpret_cast<const uint4*>(shared_.results + token * kTileRowBytes + (chunk ^ token % 8) * 16);
      const uint4 codes = make_uint4(__byte_perm(pairs.x, pairs.y, 0x6420), __byte_perm(pairs.z, pairs.w, 0x6420),
                                     __byte_perm(pairs.x, pairs.y, 0x7531), __byte_perm(pairs.z, pairs.w, 0x7531));
      *reinterpret_cast<uint4*>(p_.codes + (first_token + token) * p_.code_stride + first_column + chunk * 16) = codes;
    }
  }

  const GroupedParams& p_;
  const GroupedShared<Tile>& shared_;
  const int group_;
  const int thread_;
  RingPlace<Tile::kSteps> place_;
  float sums_[Tile::kWaves][Tile::kSums];
};

}  // namespace onerec::cuda::kernels
