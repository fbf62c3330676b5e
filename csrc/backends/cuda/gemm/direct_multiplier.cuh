// The direct kernel's warpgroups: products in the tensor cores, results from their registers.
#pragma once

#include "backends/cuda/gemm/direct_ring.cuh"
#include "backends/cuda/gemm/shared_words.cuh"
#include "backends/cuda/kernels/numeric.cuh"

namespace onerec::cuda::kernels {

template <int kOutputs>
struct DirectAtom;
template <>
struct DirectAtom<128> : gmma::MMA_64x128x32_F32E4M3E4M3_SS_TN<> {};
template <>
struct DirectAtom<192> : gmma::MMA_64x192x32_F32E4M3E4M3_SS_TN<> {};
template <>
struct DirectAtom<256> : gmma::MMA_64x256x32_F32E4M3E4M3_SS_TN<> {};

// silu(gate) * up, within 2^-16 of its size; 0 for gates below -87.
__device__ __forceinline__ float silu_product(float gate, float up) {
  constexpr float kLog2E = 1.44269504f;
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(gate * -kLog2E));
  return gate * approximate_inverse(1.0f + power) * up;
}

// Copies 16 bytes to shared memory, or zeros if `present` is not set. wait_copies() waits for this thread's.
__device__ __forceinline__ void copy_vector(float* shared, const float* from, bool present) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(from),
               "r"(present ? 16 : 0)
               : "memory");
}

__device__ __forceinline__ void wait_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// A load that stays where it is written, ahead of the wait for the products.
__device__ __forceinline__ uint4 load_early(const __nv_bfloat16* from) {
  uint4 v;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from));
  return v;
}

// 16 bytes at once: the compiler splits some of what store_vector() asks for.
__device__ __forceinline__ void store_whole(__nv_bfloat16* to, uint4 v) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

template <class Tile>
class DirectMultiplier {
 public:
  __device__ __forceinline__ DirectMultiplier(const DirectParams& p, const DirectShared<Tile>& shared)
      : p_(p),
        shared_(shared),
        group_(__shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarpgroupThreads, 0)),
        lane_(static_cast<int>(threadIdx.x) % kLanes),
        row_(static_cast<int>(threadIdx.x) / kLanes * 16 + lane_ / 4),
        scales_(shared.warp_scales(static_cast<int>(threadIdx.x) / kLanes)),
        empty_(address_in_block(shared.empty, static_cast<std::uint32_t>(lane_ % Tile::kCluster))),
        tokens_(tile_descriptor(shared.tokens(0) + group_ * kMmaRows * kTileRowBytes)),
        weights_(tile_descriptor(shared.weights(0))) {}

  __device__ __forceinline__ void run() {
    DirectWalk<Tile> walk(p_);
    wait_for_previous_kernel();
    const int live_rows = live_rows_of(p_);
    walk.start(live_rows);
    if (!walk.guessed_right()) skip(walk.early_steps());
    if (!walk.valid()) return;
    if (group_ == 1) sync_threads(kLeadBarrier, Tile::kMultipliers);
    int lead = group_ == 0 ? (Tile::kLead < p_.depth_steps ? Tile::kLead : p_.depth_steps) : 0;
    for (; walk.valid(); walk.next()) {
      const int column = walk.tile_column() * Tile::kColumns;
      const int row = walk.first_row() + row_;
      const bool live[2] = {row < live_rows, row + 8 < live_rows};
      float row_scales[2] = {0.0f, 0.0f};
      if (live[0]) row_scales[0] = p_.token_scales[row];
      if (live[1]) row_scales[1] = p_.token_scales[row + 8];
      bring_scales(column);

      float sums[Tile::kSums];
      multiply(lead, sums);
      lead = 0;
      if constexpr (Tile::kSwiglu) {
        finish(sums);
        if (p_.codes.progress == nullptr) {
          store_swiglu<false>(sums, row_scales, live, row, column);
        } else {
          store_swiglu<true>(sums, row_scales, live, row, column);
        }
      } else if (p_.residual == nullptr) {
        finish(sums);
        Residual residual;
        store<false>(sums, row_scales, live, row, column, residual);
      } else {
        Residual residual;
#pragma unroll
        for (int group = 0; group < kEarlyGroups; ++group) load_residual(group, live, row, column, residual);
        finish(sums);
        store<true>(sums, row_scales, live, row, column, residual);
      }
    }
  }

 private:
  static constexpr int kLanes = 32;
  static constexpr int kLeadBarrier = 1;
  static constexpr int kVectorColumns = 8;  // of the result: 16 bytes

  // Groups of the residual that a thread holds at a time; the first ones come while the last products are under way.
  static constexpr int kEarlyGroups = Tile::kGroups < 4 ? Tile::kGroups : 4;

  struct Residual {
    uint4 vectors[kEarlyGroups][2];
  };

  // This warp has read the step for the last time: lane i tells block i.
  __device__ __forceinline__ void release(int step) const {
    __syncwarp();
    if (lane_ < Tile::kCluster) arrive_at(empty_ + static_cast<std::uint32_t>(step) * 8);
  }

  __device__ __forceinline__ void skip(int steps) {
    for (int k = 0; k < steps; ++k) {
      wait_barrier(shared_.full + place_.step, place_.parity);
      release(place_.step);
      place_.advance();
    }
  }

  // Scales of the tile's weights and biases, gates first; they arrive while it is multiplied.
  __device__ __forceinline__ void bring_scales(int column) const {
    __syncwarp();  // the last tile's have been read
#pragma unroll
    for (int i = 0; i < Tile::kOutputs; i += kLanes * 4) {
      const int at = i + lane_ * 4;
      if (Tile::kOutputs % (kLanes * 4) != 0 && at >= Tile::kOutputs) break;
      const int in_half = at % Tile::kColumns;
      const bool present = column + in_half < p_.columns;
      const int output = present ? (at < Tile::kColumns ? 0 : p_.columns) + column + in_half : 0;
      copy_vector(scales_ + at, p_.weight_scales + output, present);
      const bool biased = present && p_.bias != nullptr;
      copy_vector(scales_ + Tile::kOutputs + at, biased ? p_.bias + output : p_.weight_scales, biased);
    }
  }

  // Leaves the last step's products under way. After the `lead`th step the other warpgroup may begin; 0: it has.
  __device__ __forceinline__ void multiply(int lead, float (&sums)[Tile::kSums]) {
    pin_registers(sums);
    for (int k = 0; k < p_.depth_steps; ++k) {
      wait_barrier(shared_.full + place_.step, place_.parity);
      const std::uint64_t at = static_cast<std::uint64_t>(place_.step) * descriptor_step(Tile::kStepBytes);
      begin_mma();
#pragma unroll
      for (int i = 0; i < kTileRowBytes / kMmaDepthBytes; ++i) {
        const std::uint64_t in_row = at + i * descriptor_step(kMmaDepthBytes);
        issue_mma<DirectAtom<Tile::kOutputs>>(tokens_ + in_row, weights_ + in_row, sums,
                                              i == 0 && k == 0 ? gmma::ScaleOut::Zero : gmma::ScaleOut::One,
                                              cute::make_integer_sequence<int, Tile::kSums>{});
      }
      commit_mma();
      wait_mma<1>();
      pin_registers(sums);
      if (k > 0) release(last_step_);
      last_step_ = place_.step;
      place_.advance();
      if (k + 1 == lead) pass_threads(kLeadBarrier, Tile::kMultipliers);
    }
  }

  __device__ __forceinline__ void finish(float (&sums)[Tile::kSums]) {
    wait_mma<0>();
    pin_registers(sums);
    release(last_step_);
    wait_copies();
    __syncwarp();
  }

  // Of the thread's 8 columns of a group: where they begin.
  __device__ __forceinline__ int first_column(int group) const {
    return group * kResultGroup + lane_ % 4 * kVectorColumns;
  }

  __device__ __forceinline__ void load_residual(int group, const bool (&live)[2], int row, int column,
                                                Residual& residual) const {
    const __nv_bfloat16* const from = p_.residual + row * p_.residual_stride + column + first_column(group);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint4& vector = residual.vectors[group % kEarlyGroups][half];
      vector = make_uint4(0, 0, 0, 0);
      if (live[half] && column + group * kResultGroup < p_.columns) {
        vector = load_early(from + half * 8 * p_.residual_stride);
      }
    }
  }

  __device__ __forceinline__ static void read_vector(const float* from, float (&values)[kVectorColumns]) {
    const float4 low = *reinterpret_cast<const float4*>(from);
    const float4 high = *reinterpret_cast<const float4*>(from + 4);
    values[0] = low.x;
    values[1] = low.y;
    values[2] = low.z;
    values[3] = low.w;
    values[4] = high.x;
    values[5] = high.y;
    values[6] = high.z;
    values[7] = high.w;
  }

  template <bool kResidual>
  __device__ __forceinline__ void store(const float (&sums)[Tile::kSums], const float (&row_scales)[2],
                                        const bool (&live)[2], int row, int column, Residual& residual) const {
    __nv_bfloat16* const to = p_.y + row * p_.y_stride + column;
#pragma unroll
    for (int group = 0; group < Tile::kGroups; ++group) {
      if (column + group * kResultGroup >= p_.columns) break;
      const int first = first_column(group);
      float scales[kVectorColumns];
      float bias[kVectorColumns];
      read_vector(scales_ + first, scales);
      read_vector(scales_ + Tile::kOutputs + first, bias);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float values[kVectorColumns];
#pragma unroll
        for (int i = 0; i < kVectorColumns; ++i) {
          const float sum = sums[group * 16 + i / 2 * 4 + half * 2 + i % 2];
          values[i] = fmaf(row_scales[half], __fmul_rn(scales[i], sum), bias[i]);
        }
        if constexpr (kResidual) {
          float before[kVectorColumns];
          unpack<__nv_bfloat16>(residual.vectors[group % kEarlyGroups][half], before);
#pragma unroll
          for (int i = 0; i < kVectorColumns; ++i) values[i] = __fadd_rn(before[i], values[i]);
        }
        if (live[half]) store_whole(to + half * 8 * p_.y_stride + first, pack<__nv_bfloat16>(values));
      }
      if (kResidual && group + kEarlyGroups < Tile::kGroups) {
        load_residual(group + kEarlyGroups, live, row, column, residual);
      }
    }
  }

  // kCoded: also raises the rows' largest magnitudes.
  template <bool kCoded>
  __device__ __forceinline__ void store_swiglu(const float (&sums)[Tile::kSums], const float (&row_scales)[2],
                                               const bool (&live)[2], int row, int column) const {
    __nv_bfloat16* const to = p_.y + row * p_.y_stride + column;
    __nv_bfloat162 largest[2] = {bits_as<__nv_bfloat162>(0u), bits_as<__nv_bfloat162>(0u)};
#pragma unroll
    for (int group = 0; group < Tile::kGroups; ++group) {
      if (column + group * kResultGroup >= p_.columns) break;
      const int first = first_column(group);
      float gate_scales[kVectorColumns];
      float up_scales[kVectorColumns];
      float gate_bias[kVectorColumns];
      float up_bias[kVectorColumns];
      read_vector(scales_ + first, gate_scales);
      read_vector(scales_ + Tile::kColumns + first, up_scales);
      read_vector(scales_ + Tile::kOutputs + first, gate_bias);
      read_vector(scales_ + Tile::kOutputs + Tile::kColumns + first, up_bias);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float values[kVectorColumns];
#pragma unroll
        for (int i = 0; i < kVectorColumns; ++i) {
          const float* const pair = sums + group * 32 + i * 4 + half * 2;
          const float gate = fmaf(row_scales[half], __fmul_rn(gate_scales[i], pair[0]), gate_bias[i]);
          const float up = fmaf(row_scales[half], __fmul_rn(up_scales[i], pair[1]), up_bias[i]);
          // Both roundings in one instruction; the conversion of a single value is far slower.
          const auto rounded = bits_as<std::uint32_t>(__floats2bfloat162_rn(gate, up));
          values[i] = silu_product(bits_as<float>(rounded << 16), bits_as<float>(rounded & 0xffff0000u));
        }
        const uint4 vector = pack<__nv_bfloat16>(values);
        if (live[half]) store_whole(to + half * 8 * p_.y_stride + first, vector);
        if constexpr (kCoded) {
          for (const std::uint32_t word : {vector.x, vector.y, vector.z, vector.w}) {
            largest[half] = __hmax2_nan(largest[half], __habs2(bits_as<__nv_bfloat162>(word)));
          }
        }
      }
    }
    if constexpr (kCoded) raise_largest(largest, live, row);
  }

  // Even and odd columns' magnitudes of the thread's two rows. Bits of magnitudes are ordered as they are, NaN on top.
  __device__ __forceinline__ void raise_largest(const __nv_bfloat162 (&largest)[2], const bool (&live)[2],
                                                int row) const {
    __nv_bfloat162 rows =
        __hmax2_nan(__lows2bfloat162(largest[0], largest[1]), __highs2bfloat162(largest[0], largest[1]));
    rows = __hmax2_nan(rows, __shfl_xor_sync(0xffffffffu, rows, 1));
    rows = __hmax2_nan(rows, __shfl_xor_sync(0xffffffffu, rows, 2));
    const auto bits = bits_as<std::uint32_t>(rows);
    const bool second = lane_ % 4 == 1;  // two of a row's four lanes have something to do
    if (lane_ % 4 < 2 && (second ? live[1] : live[0])) {
      raise_shared_by_blocks(p_.codes.progress + DirectProgress(p_.rows).largest(row + (second ? 8 : 0)),
                             second ? bits & 0xffff0000u : bits << 16);
    }
  }

  const DirectParams& p_;
  const DirectShared<Tile>& shared_;
  const int group_;
  const int lane_;
  const int row_;        // of the tile's tokens; the thread's other one is 8 behind it
  float* const scales_;  // of the tile's weights; behind them their biases
  const std::uint32_t empty_;
  const std::uint64_t tokens_;  // of the ring's first step
  const std::uint64_t weights_;
  DirectPlace<Tile> place_;
  int last_step_ = 0;
};

}  // namespace onerec::cuda::kernels
