// The split kernel's warpgroups: products of a part of K, the exchange of sums between the blocks of a tile, results.
#pragma once

#include "backends/cuda/gemm/norm_codes.cuh"
#include "backends/cuda/gemm/result_vector.cuh"
#include "backends/cuda/gemm/split_ring.cuh"
#include "backends/cuda/kernels/numeric.cuh"

namespace onerec::cuda::kernels {

// wait_barrier() behind which what other blocks of the cluster wrote is visible.
__device__ __forceinline__ void wait_cluster_barrier(std::uint64_t* barrier, std::uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// Stores 16 bytes to the shared memory of a block of the cluster, whose barrier counts them.
__device__ __forceinline__ void store_counted(std::uint32_t address, std::uint32_t barrier, float a, float b, float c,
                                              float d) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(address),
      "f"(a), "f"(b), "f"(c), "f"(d), "r"(barrier)
      : "memory");
}

template <class Tile>
class SplitMultiplier {
 public:
  __device__ __forceinline__ SplitMultiplier(const DirectParams& p, const SplitShared<Tile>& shared)
      : p_(p),
        shared_(shared),
        place_(p),
        group_(__shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarpgroupThreads, 0)),
        lane_(static_cast<int>(threadIdx.x) % kLanes),
        row_(place_.first_row + static_cast<int>(threadIdx.x) / kLanes * 16 + lane_ / 4),
        empty_(address_in_block(shared.empty, place_.rank_of(lane_ % Tile::kShare, place_.part))),
        tokens_(tile_descriptor(shared.tokens(0) + group_ * kMmaRows * kTileRowBytes)),
        weights_(tile_descriptor(shared.weights(0))) {}

  __device__ __forceinline__ void run() {
    bring_scales();
    wait_for_previous_kernel();
    const int live_rows = live_rows_of(p_);
    if (place_.cluster_row >= live_rows) return;
    sync_threads(kScaleBarrier, Tile::kMultipliers);
    const bool live[2] = {row_ < live_rows, row_ + 8 < live_rows};
    PairOfRows tokens;
    tokens.load(p_.tokens_norm, row_, live);
    PairOfRows before;
    if constexpr (Tile::kNormed) before.load(p_.norm.previous, row_, live);

    // Early, so that it arrives while the tile is multiplied.
    Residual residual;
    load_residual(live, residual);
    float sums[Tile::kSums];
    multiply(sums);
    wait_mma<0>();
    pin_registers(sums);
    if (place_.depth.count > 0) release(last_step_);
    float owned[Tile::kOwnedUnits][kUnitSums];
    if constexpr (Tile::kParts > 1) {
      send(sums);
      take_owned(sums, owned);
      receive(owned);
    } else {
      take_owned(sums, owned);
    }
    const float row_scales[2] = {tokens.factor(p_.tokens_norm, 0), tokens.factor(p_.tokens_norm, 1)};
    store(owned, row_scales, live, residual, before);
  }

 private:
  static constexpr int kLanes = 32;
  static constexpr int kScaleBarrier = 1;
  static constexpr int kUnitSums = 4;

  // The thread's two rows of an operand, as they lie; what they say is worked out behind the products.
  struct PairOfRows {
    float scales[2] = {0.0f, 0.0f};
    unsigned long long squares[2] = {0, 0};

    __device__ __forceinline__ void load(const PendingRows& rows, int row, const bool (&live)[2]) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (!live[half]) continue;
        scales[half] = rows.scales[row + half * 8];
        if (rows.squares != nullptr) squares[half] = rows.squares[row + half * 8];
      }
    }
    __device__ __forceinline__ float factor(const PendingRows& rows, int half) const {
      return rows.squares == nullptr ? scales[half] : pending_factor(rows, scales[half], squares[half]);
    }
  };

  struct Residual {
    uint2 vectors[Tile::kOwnedUnits];
  };

  // A unit that this block owns: which of the thread's rows, and where its columns are in the tile.
  struct Unit {
    int half;
    int column;
  };
  __device__ __forceinline__ Unit unit(int i) const {
    const int in_group = lane_ % 4 * kUnitSums;
    if constexpr (Tile::kOwnedUnits == Tile::kGroups) return {place_.part, i * kSplitGroup + in_group};
    const int index = place_.part * Tile::kOwnedUnits + i;
    return {index / Tile::kGroups, index % Tile::kGroups * kSplitGroup + in_group};
  }
  __device__ __forceinline__ bool stored(int i, const Unit& u, const bool (&live)[2]) const {
    if (place_.part * Tile::kOwnedUnits + i >= Tile::kUnits) return false;
    return (u.half == 0 ? live[0] : live[1]) && place_.first_column + u.column < p_.columns;
  }

  // Sum j of a unit: of column 8i + 2q + b of the instruction for j = 2i + b.
  __device__ __forceinline__ static float sum_of(const float (&sums)[Tile::kSums], int unit, int j) {
    const int half = unit / Tile::kGroups;
    const int group = unit % Tile::kGroups;
    return sums[group * 8 + j / 2 * 4 + half * 2 + j % 2];
  }

  // Scales of the tile's weights and biases: no kernel writes them, so that they come ahead of the wait.
  __device__ __forceinline__ void bring_scales() const {
    const int i = static_cast<int>(threadIdx.x);
    if (i >= Tile::kOutputs) return;
    const int column = place_.first_column + i;
    const bool present = column < p_.columns;
    shared_.scales[i] = present ? p_.weight_scales[column] : 0.0f;
    shared_.scales[Tile::kOutputs + i] = present && p_.bias != nullptr ? p_.bias[column] : 0.0f;
    if constexpr (Tile::kNormed) shared_.scales[2 * Tile::kOutputs + i] = present ? p_.norm.gamma[column] : 0.0f;
  }

  // This warp has read the step for the last time: lane i tells the block of row tile i.
  __device__ __forceinline__ void release(int step) const {
    __syncwarp();
    if (lane_ < Tile::kShare) arrive_at(empty_ + static_cast<std::uint32_t>(step) * 8);
  }

  // To the blocks of the other parts, by every warp: where receiving_step() says, this block can take their sums.
  __device__ __forceinline__ void open() const {
    if constexpr (Tile::kParts == 1) return;
    __syncwarp();
    if (lane_ < Tile::kParts && lane_ != place_.part) {
      arrive_at(address_in_block(shared_.open, place_.rank_of(place_.share, lane_)));
    }
  }

  // Leaves the last step's products under way.
  __device__ __forceinline__ void multiply(float (&sums)[Tile::kSums]) {
#pragma unroll
    for (int i = 0; i < Tile::kSums; ++i) sums[i] = 0.0f;
    pin_registers(sums);
    if (place_.depth.count == 0) open();
    DirectPlace<Tile> at;
    for (int k = 0; k < place_.depth.count; ++k) {
      wait_barrier(shared_.full + at.step, at.parity);
      const std::uint64_t in_ring = static_cast<std::uint64_t>(at.step) * descriptor_step(Tile::kStepBytes);
      begin_mma();
      multiply_tile<true, Tile::kOutputs>(tokens_ + in_ring, weights_ + in_ring, false, sums);
      commit_mma();
      wait_mma<1>();
      pin_registers(sums);
      if (k > 0) release(last_step_);
      if (k + 1 == place_.depth.count) open();
      last_step_ = at.step;
      at.advance();
    }
  }

  __device__ __forceinline__ void load_residual(const bool (&live)[2], Residual& residual) const {
#pragma unroll
    for (int i = 0; i < Tile::kOwnedUnits; ++i) {
      uint2& v = residual.vectors[i];
      v = make_uint2(0, 0);
      const Unit u = unit(i);
      if (p_.residual == nullptr || !stored(i, u, live)) continue;
      const __nv_bfloat16* const from =
          p_.residual + (row_ + u.half * 8) * p_.residual_stride + place_.first_column + u.column;
      asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(from));
    }
  }

  // A thread's sums go to the same thread of the blocks that own them.
  __device__ __forceinline__ void send(const float (&sums)[Tile::kSums]) const {
    wait_barrier(shared_.open, 0);
#pragma unroll
    for (int to = 0; to < Tile::kParts; ++to) {
      if (to == place_.part) continue;
      const int step = receiving_step(p_.depth_steps, place_.part, to, Tile::kParts, Tile::kSteps);
      const std::uint32_t rank = place_.rank_of(place_.share, to);
      const std::uint32_t place = address_in_block(shared_.step(step) + threadIdx.x * 16, rank);
      const std::uint32_t barrier = address_in_block(shared_.received + group_, rank);
#pragma unroll
      for (int i = 0; i < units_of_part(Tile::kOutputs, to, Tile::kParts); ++i) {
        const int u = to * Tile::kOwnedUnits + i;
        store_counted(place + i * Tile::kUnitBytes, barrier, sum_of(sums, u, 0), sum_of(sums, u, 1), sum_of(sums, u, 2),
                      sum_of(sums, u, 3));
      }
    }
  }

  __device__ __forceinline__ void take_owned(const float (&sums)[Tile::kSums],
                                             float (&owned)[Tile::kOwnedUnits][kUnitSums]) const {
#pragma unroll
    for (int part = 0; part < Tile::kParts; ++part) {
      if (part != place_.part) continue;
#pragma unroll
      for (int i = 0; i < Tile::kOwnedUnits; ++i) {
#pragma unroll
        for (int j = 0; j < kUnitSums; ++j) {
          const int u = part * Tile::kOwnedUnits + i;
          owned[i][j] = u < Tile::kUnits ? sum_of(sums, u, j) : 0.0f;
        }
      }
    }
  }

  // Adds the other parts' sums, those of the first part of K first.
  __device__ __forceinline__ void receive(float (&owned)[Tile::kOwnedUnits][kUnitSums]) const {
    wait_cluster_barrier(shared_.received + group_, 0);
    const unsigned char* from[Tile::kParts];
#pragma unroll
    for (int part = 0; part < Tile::kParts; ++part) {
      const int other = part == place_.part ? (part + 1) % Tile::kParts : part;
      const int step = receiving_step(p_.depth_steps, other, place_.part, Tile::kParts, Tile::kSteps);
      from[part] = shared_.step(step) + threadIdx.x * 16;
    }
#pragma unroll
    for (int i = 0; i < Tile::kOwnedUnits; ++i) {
      if (place_.part * Tile::kOwnedUnits + i >= Tile::kUnits) break;
      float total[kUnitSums];
#pragma unroll
      for (int part = 0; part < Tile::kParts; ++part) {
        const bool own = part == place_.part;
        float4 v = make_float4(owned[i][0], owned[i][1], owned[i][2], owned[i][3]);
        if (!own) v = *reinterpret_cast<const float4*>(from[part] + i * Tile::kUnitBytes);
        total[0] = part == 0 ? v.x : __fadd_rn(total[0], v.x);
        total[1] = part == 0 ? v.y : __fadd_rn(total[1], v.y);
        total[2] = part == 0 ? v.z : __fadd_rn(total[2], v.z);
        total[3] = part == 0 ? v.w : __fadd_rn(total[3], v.w);
      }
#pragma unroll
      for (int j = 0; j < kUnitSums; ++j) owned[i][j] = total[j];
    }
  }

  __device__ __forceinline__ void store(const float (&owned)[Tile::kOwnedUnits][kUnitSums],
                                        const float (&row_scales)[2], const bool (&live)[2], const Residual& residual,
                                        const PairOfRows& before_rows) const {
    RowNorms norms;
    if constexpr (Tile::kNormed) norms.start(p_.norm, before_rows);
    __nv_bfloat16* const first = p_.y + row_ * p_.y_stride + place_.first_column;
    __nv_bfloat16* const rows[2] = {first, first + 8 * p_.y_stride};
#pragma unroll
    for (int i = 0; i < Tile::kOwnedUnits; ++i) {
      const Unit u = unit(i);
      const float row_scale = u.half == 0 ? row_scales[0] : row_scales[1];
      const float4 scales = *reinterpret_cast<const float4*>(shared_.scales + u.column);
      const float4 bias = *reinterpret_cast<const float4*>(shared_.scales + Tile::kOutputs + u.column);
      float values[kUnitSums] = {fmaf(row_scale, __fmul_rn(scales.x, owned[i][0]), bias.x),
                                 fmaf(row_scale, __fmul_rn(scales.y, owned[i][1]), bias.y),
                                 fmaf(row_scale, __fmul_rn(scales.z, owned[i][2]), bias.z),
                                 fmaf(row_scale, __fmul_rn(scales.w, owned[i][3]), bias.w)};
      const uint2 before = residual.vectors[i];  // zeros if there is none
      values[0] = __fadd_rn(bits_as<float>(before.x << 16), values[0]);
      values[1] = __fadd_rn(bits_as<float>(before.x & 0xffff0000u), values[1]);
      values[2] = __fadd_rn(bits_as<float>(before.y << 16), values[2]);
      values[3] = __fadd_rn(bits_as<float>(before.y & 0xffff0000u), values[3]);
      const ResultVector<kUnitSums> vector = rounded(values);
      store_whole((u.half == 0 ? rows[0] : rows[1]) + u.column, vector, stored(i, u, live));
      if constexpr (Tile::kNormed) store_norm(vector, u, stored(i, u, live), norms);
    }
    if constexpr (Tile::kNormed) finish_norm(live, norms);
  }

  // Codes of the norm of y. A thread has values of two rows or, where K has parts, of one.
  static constexpr bool kSingleRow = Tile::kOwnedUnits <= Tile::kGroups;
  struct RowNorms {
    float inverse_roots[2];
    CodedRow rows[2];

    __device__ __forceinline__ void start(const DirectNorm& norm, const PairOfRows& before) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        inverse_roots[half] = inverse_root_before(norm, before.scales[half], before.squares[half]);
      }
    }
    __device__ __forceinline__ float inverse_root(int half) const {
      return half == 0 ? inverse_roots[0] : inverse_roots[1];
    }
  };

  __device__ __forceinline__ void store_norm(const ResultVector<kUnitSums>& vector, const Unit& u, bool present,
                                             RowNorms& norms) const {
    float gamma[kUnitSums];
    load_floats(shared_.scales + 2 * Tile::kOutputs + u.column, gamma);
    const std::uint32_t codes =
        norms.rows[kSingleRow ? 0 : u.half].code(vector, gamma, norms.inverse_root(u.half) * p_.norm.unit);
    store_whole(p_.norm.codes + (row_ + u.half * 8) * p_.norm.stride + place_.first_column + u.column, codes, present);
  }

  __device__ __forceinline__ void finish_norm(const bool (&live)[2], const RowNorms& norms) const {
#pragma unroll
    for (int i = 0; i < (kSingleRow ? 1 : 2); ++i) {
      const int half = kSingleRow ? unit(0).half : i;
      finish_codes(p_.norm, row_ + half * 8, half == 0 ? live[0] : live[1], place_.first_column == 0,
                   norms.inverse_root(half), norms.rows[i]);
    }
  }

  const DirectParams& p_;
  const SplitShared<Tile>& shared_;
  const SplitPlace<Tile> place_;
  const int group_;
  const int lane_;
  const int row_;  // the thread's first one; the other one is 8 behind it
  const std::uint32_t empty_;
  const std::uint64_t tokens_;  // of the ring's first step
  const std::uint64_t weights_;
  int last_step_ = 0;
};

}  // namespace onerec::cuda::kernels
