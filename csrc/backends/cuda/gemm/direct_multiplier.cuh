// The direct kernel's warpgroups: products in the tensor cores, results from their registers.
#pragma once

#include "backends/cuda/gemm/direct_ring.cuh"
#include "backends/cuda/gemm/product_swiglu.cuh"
#include "backends/cuda/gemm/result_vector.cuh"
#include "backends/cuda/gemm/shared_words.cuh"
#include "backends/cuda/kernels/numeric.cuh"

namespace onerec::cuda::kernels {

// Copies kBytes to shared memory, or zeros if `present` is not set. wait_copies() waits for this thread's.
template <int kBytes>
__device__ __forceinline__ void copy_to_shared(float* shared, const float* from, bool present) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)), "l"(from), "n"(kBytes),
               "r"(present ? kBytes : 0)
               : "memory");
}

__device__ __forceinline__ void wait_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

template <class Tile>
class DirectMultiplier {
 public:
  __device__ __forceinline__ DirectMultiplier(const DirectParams& p, const DirectShared<Tile>& shared)
      : p_(p),
        shared_(shared),
        group_(__shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarpgroupThreads, 0)),
        lane_(static_cast<int>(threadIdx.x) % kLanes),
        scales_(shared.warp_scales(static_cast<int>(threadIdx.x) / kLanes)),
        empty_(address_in_block(shared.empty, static_cast<std::uint32_t>(lane_ % Tile::kCluster))),
        tokens_(tile_descriptor(shared.tokens(0) + group_ * kMmaRows * kTileRowBytes)),
        weights_(tile_descriptor(shared.weights(0))) {}

  __device__ __forceinline__ void run() {
    DirectWalk<Tile> walk(p_);
    wait_for_previous_kernel();
    walk.start(live_rows_of(p_));
    if (!walk.guessed_right()) skip(walk.early_steps());
    int left = walk.left();
    if (left == 0) return;
    // The loading thread says where the tiles behind the first one are. All warps write the same.
    if (lane_ == 0) *shared_.tile(left) = walk.origin();
    __syncwarp();
    if (group_ == 1) sync_threads(kLeadBarrier, Tile::kMultipliers);
    Results results;
    for (; left > 0; --left) {
      float sums[Tile::kSums];
      multiply(left, sums, results);
      results.set_place(*shared_.tile(left));
      wait_mma<0>();
      pin_registers(sums);
      release(last_step_);
      wait_copies();
      __syncwarp();
      if (biased(left)) {
        make<true>(sums, results);
      } else {
        make<false>(sums, results);
      }
    }
#pragma unroll
    for (int step = 0; step < Tile::kStoreSteps; ++step) store<Moment::kAtTheEnd>(step, results);
  }

 private:
  static constexpr int kLanes = 32;
  static constexpr int kLeadBarrier = 1;
  static constexpr int kWarpRows = 16;
  static constexpr int kVectorColumns = Tile::kVectorColumns;  // neighbouring columns of the result
  using Vector = ResultVector<kVectorColumns>;
  // Whether results are stored behind the last products, a thread's side by side, or beside products, with few
  // registers and instructions to spare.
  enum class Moment { kBesideProducts, kAtTheEnd };

  // What is left of a thread's last tile, rounded to BF16: y, or with SwiGLU pairs of gate and up. The rest is done
  // while the next tile's first steps are multiplied.
  struct Results {
    std::uint32_t words[Tile::kSums / 2];
    int row = kNone;         // the thread's first one
    int column = 0;          // of the tile; its two lowest bits say whether the thread's rows are alive
    __nv_bfloat162 largest;  // kSwigluValues: magnitudes of the thread's columns in its two rows, as far as known

    static constexpr int kNone = -1;
    static_assert(Tile::kGroupColumns % 4 == 0, "a column leaves room for two bits");

    __device__ __forceinline__ void set_place(const DirectOrigin& tile) {
      row = tile.row + row_in_tile();
      const int live = tile.live - row_in_tile();
      column = tile.column | (live > 0 ? 1 : 0) | (live > 8 ? 2 : 0);
    }
    __device__ __forceinline__ bool live(int half) const { return (column >> half & 1) != 0; }
    __device__ __forceinline__ int tile_column() const { return column & ~3; }
  };

  // The thread's first row of a tile; its other one is 8 behind. Worked out anew for each tile: there is no register to
  // keep it in.
  __device__ __forceinline__ static int row_in_tile() {
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread / kLanes * 16 + thread % kLanes / 4;
  }

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

  // Whether a bias, if only of zeros, is added to a tile, whose values are then stored at once: there is nothing behind
  // the last tile that could hide it.
  __device__ __forceinline__ bool biased(int left) const { return p_.bias != nullptr || (!Tile::kSwiglu && left == 1); }

  // Scales of the tile's weights and biases, gates first, and of the warp's rows; they arrive while it is multiplied.
  __device__ __forceinline__ void bring_scales(int left) const {
    __syncwarp();  // the last tile's have been read
    const DirectOrigin& tile = *shared_.tile(left);
    const int column = tile.column;
#pragma unroll
    for (int i = 0; i < Tile::kOutputs; i += kLanes * 4) {
      const int at = i + lane_ * 4;
      if (Tile::kOutputs % (kLanes * 4) != 0 && at >= Tile::kOutputs) break;
      const int in_half = at % Tile::kColumns;
      const bool present = column + in_half < p_.columns;
      const int output = present ? (at < Tile::kColumns ? 0 : p_.columns) + column + in_half : 0;
      copy_to_shared<16>(scales_ + at, p_.weight_scales + output, present);
      if (biased(left)) {
        const bool there = present && p_.bias != nullptr;
        copy_to_shared<16>(scales_ + Tile::kOutputs + at, there ? p_.bias + output : p_.weight_scales, there);
      }
    }
    if (lane_ < kWarpRows) {
      const int row = static_cast<int>(threadIdx.x) / kLanes * kWarpRows + lane_;
      const bool live = row < tile.live;
      const int from = live ? tile.row + row : 0;
      copy_to_shared<4>(place_of_scale(lane_), p_.tokens_norm.scales + from, live);
      if (p_.tokens_norm.squares != nullptr) {
        copy_to_shared<8>(place_of_squares(lane_), reinterpret_cast<const float*>(p_.tokens_norm.squares + from), live);
      }
    }
  }

  // Where what is brought of one of the warp's rows lies.
  __device__ __forceinline__ float* place_of_scale(int row) const { return scales_ + 2 * Tile::kOutputs + row; }
  __device__ __forceinline__ float* place_of_squares(int row) const {
    return scales_ + 2 * Tile::kOutputs + kWarpRows + 2 * row;
  }

  // The scale of the thread's first row, or of its second one.
  __device__ __forceinline__ float row_scale(int half) const {
    const int row = lane_ / 4 + half * 8;
    const float scale = *place_of_scale(row);
    if (p_.tokens_norm.squares == nullptr) return scale;
    return pending_factor(p_.tokens_norm, scale, *reinterpret_cast<const unsigned long long*>(place_of_squares(row)));
  }

  // Leaves the last step's products under way, and finishes the tile before. The second warpgroup begins when the first
  // one has begun its very first steps.
  __device__ __forceinline__ void multiply(int left, float (&sums)[Tile::kSums], Results& results) {
    pin_registers(sums);
#pragma unroll
    for (int k = 0; k < Tile::kStoreSteps; ++k) {
      if (k < p_.depth_steps) start_step(k == 0, sums);
      if (k == 0) bring_scales(left);
      if (k == Tile::kLead && group_ == 0 && results.row == Results::kNone) {
        pass_threads(kLeadBarrier, Tile::kMultipliers);
      }
      if (results.row != Results::kNone) store<Moment::kBesideProducts>(k, results);
      if (k < p_.depth_steps) end_step(k == 0, sums);
    }
    for (int k = Tile::kStoreSteps; k < p_.depth_steps; ++k) {
      start_step(false, sums);
      end_step(false, sums);
    }
  }

  __device__ __forceinline__ void start_step(bool first, float (&sums)[Tile::kSums]) {
    wait_barrier(shared_.full + place_.step, place_.parity);
    const std::uint64_t at = static_cast<std::uint64_t>(place_.step) * descriptor_step(Tile::kStepBytes);
    begin_mma();
    multiply_tile<true, Tile::kOutputs>(tokens_ + at, weights_ + at, first, sums);
    commit_mma();
  }

  // The step before is done.
  __device__ __forceinline__ void end_step(bool first, float (&sums)[Tile::kSums]) {
    wait_mma<1>();
    pin_registers(sums);
    if (!first) release(last_step_);
    last_step_ = place_.step;
    place_.advance();
  }

  // Of the thread's columns of a group: where they begin.
  __device__ __forceinline__ int first_column(int group) const {
    return group * Tile::kGroupColumns + lane_ % 4 * kVectorColumns;
  }

  __device__ __forceinline__ static void hold(const Vector& vector, int group, int half, Results& results) {
#pragma unroll
    for (int i = 0; i < kVectorColumns / 2; ++i)
      results.words[(group * 2 + half) * (kVectorColumns / 2) + i] = vector.words[i];
  }
  __device__ __forceinline__ static Vector held(int group, int half, const Results& results) {
    Vector vector;
#pragma unroll
    for (int i = 0; i < kVectorColumns / 2; ++i)
      vector.words[i] = results.words[(group * 2 + half) * (kVectorColumns / 2) + i];
    return vector;
  }

  template <bool kBiased>
  __device__ __forceinline__ void make(const float (&sums)[Tile::kSums], Results& results) {
    const float row_scales[2] = {row_scale(0), row_scale(1)};
    if constexpr (Tile::kSwiglu) {
      make_pairs<kBiased>(sums, row_scales, results);
    } else if constexpr (Tile::kAdded) {
      // The residual comes through the ring, behind the tile's last step.
      const int row = row_in_tile();
#pragma unroll
      for (int group = 0; group < Tile::kGroups; group += Tile::kAddedGroups) {
        wait_barrier(shared_.full + place_.step, place_.parity);
        const std::uint32_t residual = shared_address(shared_.residual(place_.step, 0)) + row * kTileRowBytes;
#pragma unroll
        for (int i = group; i < group + Tile::kAddedGroups && i < Tile::kGroups; ++i) {
          make_group<kBiased>(i, residual + (i - group) / Tile::kPanelGroups * Tile::kPanelBytes, sums, row_scales,
                              results);
        }
        release(place_.step);
        place_.advance();
      }
    } else {
#pragma unroll
      for (int group = 0; group < Tile::kGroups; ++group) {
        make_group<kBiased>(group, 0, sums, row_scales, results);
      }
    }
    // With a bias there are no registers for results that wait: they have been stored.
    if (kBiased && !Tile::kSwiglu) results.column = results.tile_column();
  }

  // `residual`: the thread's first row of the panel that the group is a part of.
  template <bool kBiased>
  __device__ __forceinline__ void make_group(int group, std::uint32_t residual, const float (&sums)[Tile::kSums],
                                             const float (&row_scales)[2], Results& results) const {
    const int first = first_column(group);
    float scales[kVectorColumns];
    float bias[kVectorColumns] = {};
    load_floats(scales_ + first, scales);
    if constexpr (kBiased) load_floats(scales_ + Tile::kOutputs + first, bias);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float values[kVectorColumns];
#pragma unroll
      for (int i = 0; i < kVectorColumns; ++i) {
        const float sum = __fmul_rn(scales[i], sums[group * 2 * kVectorColumns + i / 2 * 4 + half * 2 + i % 2]);
        values[i] = kBiased ? fmaf(row_scales[half], sum, bias[i]) : __fmul_rn(row_scales[half], sum);
      }
      if constexpr (Tile::kAdded) {
        const Vector before = residual_vector(residual + half * 8 * kTileRowBytes, group);
#pragma unroll
        for (int i = 0; i < kVectorColumns; i += 2) {
          values[i] = __fadd_rn(bits_as<float>(before.words[i / 2] << 16), values[i]);
          values[i + 1] = __fadd_rn(bits_as<float>(before.words[i / 2] & 0xffff0000u), values[i + 1]);
        }
      }
      if (kBiased || group < Tile::kStoredGroups) {
        store_group<Tile::kStoredGroups == 0 ? Moment::kAtTheEnd : Moment::kBesideProducts>(rounded(values), group,
                                                                                            half, results);
      } else {
        hold(rounded(values), group, half, results);
      }
    }
  }

  // Of a row of 128 bytes as the copy engine's swizzle leaves it: 16 bytes at a time. The thread's rows are lane / 4 of
  // groups of eight.
  __device__ __forceinline__ Vector residual_vector(std::uint32_t row, int group) const {
    const int byte = (group % Tile::kPanelGroups * Tile::kGroupColumns + lane_ % 4 * kVectorColumns) * 2;
    Vector v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.words[0]), "=r"(v.words[1]), "=r"(v.words[2]), "=r"(v.words[3])
                 : "r"(row + static_cast<std::uint32_t>(byte ^ lane_ / 4 * 16)));
    return v;
  }

  template <bool kBiased>
  __device__ __forceinline__ void make_pairs(const float (&sums)[Tile::kSums], const float (&row_scales)[2],
                                             Results& results) const {
#pragma unroll
    for (int group = 0; group < Tile::kGroups; ++group) {
      const int first = first_column(group);
      float gate_scales[kVectorColumns];
      float up_scales[kVectorColumns];
      float gate_bias[kVectorColumns] = {};
      float up_bias[kVectorColumns] = {};
      load_floats(scales_ + first, gate_scales);
      load_floats(scales_ + Tile::kColumns + first, up_scales);
      if constexpr (kBiased) {
        load_floats(scales_ + Tile::kOutputs + first, gate_bias);
        load_floats(scales_ + Tile::kOutputs + Tile::kColumns + first, up_bias);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int i = 0; i < kVectorColumns; ++i) {
          const float* const pair = sums + group * 4 * kVectorColumns + i * 4 + half * 2;
          const float gate = __fmul_rn(gate_scales[i], pair[0]);
          const float up = __fmul_rn(up_scales[i], pair[1]);
          // Both roundings in one instruction; the conversion of a single value is far slower.
          results.words[(group * 2 + half) * kVectorColumns + i] = bits_as<std::uint32_t>(
              kBiased ? __floats2bfloat162_rn(fmaf(row_scales[half], gate, gate_bias[i]),
                                              fmaf(row_scales[half], up, up_bias[i]))
                      : __floats2bfloat162_rn(__fmul_rn(row_scales[half], gate), __fmul_rn(row_scales[half], up)));
        }
      }
    }
  }

  // silu(gate) * up, of the words of a group and row.
  __device__ __forceinline__ static void swiglu_of(int group, int half, const Results& results,
                                                   float (&values)[kVectorColumns]) {
    const std::uint32_t* const pairs = results.words + (group * 2 + half) * kVectorColumns;
#pragma unroll
    for (int i = 0; i < kVectorColumns; ++i) {
      values[i] = silu_product(bits_as<float>(pairs[i] << 16), bits_as<float>(pairs[i] & 0xffff0000u));
    }
  }

  // A vector of y, of the words of a group and row.
  __device__ __forceinline__ Vector vector_of(int group, int half, const Results& results) const {
    if constexpr (!Tile::kSwiglu) {
      return held(group, half, results);
    } else {
      float values[kVectorColumns];
      swiglu_of(group, half, results, values);
      return rounded(values);
    }
  }

  // The part of the last tile that is finished in a step of the next one.
  template <Moment kMoment>
  __device__ __forceinline__ void store(int step, Results& results) const {
    if constexpr (Tile::kCodes) return store_codes_of<kMoment>(step, results);
    __nv_bfloat162 largest[2] = {bits_as<__nv_bfloat162>(0u), bits_as<__nv_bfloat162>(0u)};
#pragma unroll
    for (int i = 0; i < Tile::kStepGroups; ++i) {
      const int group = Tile::kStoredGroups + step * Tile::kStepGroups + i;
      if (group >= Tile::kGroups) break;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const Vector vector = vector_of(group, half, results);
        store_group<kMoment>(vector, group, half, results);
        for (const std::uint32_t word : vector.words) {
          largest[half] = __hmax2_nan(largest[half], __habs2(bits_as<__nv_bfloat162>(word)));
        }
      }
    }
    if constexpr (Tile::kCoding) {
      if (p_.codes.progress == nullptr) return;
      // Even and odd columns of the two rows.
      const __nv_bfloat162 rows =
          __hmax2_nan(__lows2bfloat162(largest[0], largest[1]), __highs2bfloat162(largest[0], largest[1]));
      results.largest = step == 0 ? rows : __hmax2_nan(results.largest, rows);
      if (step + 1 == Tile::kStoreSteps) raise_largest(results);
    }
  }

  template <Moment kMoment>
  __device__ __forceinline__ void store_group(const Vector& vector, int group, int half, const Results& results) const {
    const bool present = results.live(half) && results.tile_column() + group * Tile::kGroupColumns < p_.columns;
    if (kMoment == Moment::kBesideProducts && !present) return;
    __nv_bfloat16* const row = p_.y + (results.row + half * 8) * p_.y_stride;
    store_whole(row + results.tile_column() + first_column(group), vector, present);
  }

  // The same as codes. The tile of the first columns also says what the rows' scales are.
  template <Moment kMoment>
  __device__ __forceinline__ void store_codes_of(int step, const Results& results) const {
    const float inverse = inverse_power(p_.codes.static_scale);
#pragma unroll
    for (int i = 0; i < Tile::kStepGroups; ++i) {
      const int group = step * Tile::kStepGroups + i;
      if (group >= Tile::kGroups) break;
      const bool in_row = results.tile_column() + group * Tile::kGroupColumns < p_.columns;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float values[kVectorColumns];
        swiglu_of(group, half, results, values);
        std::uint8_t* const row = p_.codes.codes + (results.row + half * 8) * p_.codes.stride;
        const bool present = results.live(half) && in_row;
        if (kMoment == Moment::kBesideProducts && !present) continue;
        store_whole(row + results.tile_column() + first_column(group), codes_of(values, inverse), present);
      }
    }
    if (step > 0 || results.tile_column() > 0 || lane_ % 4 > 1) return;
    const int half = lane_ % 4;
    if (results.live(half)) p_.codes.scales[results.row + half * 8] = p_.codes.static_scale;
  }

  // Bits of magnitudes are ordered as they are, NaN on top.
  __device__ __forceinline__ void raise_largest(const Results& results) const {
    __nv_bfloat162 rows = results.largest;
    rows = __hmax2_nan(rows, __shfl_xor_sync(0xffffffffu, rows, 1));
    rows = __hmax2_nan(rows, __shfl_xor_sync(0xffffffffu, rows, 2));
    const auto bits = bits_as<std::uint32_t>(rows);
    const int half = lane_ % 4;  // two of a row's four lanes have something to do
    if (half < 2 && results.live(half)) {
      raise_shared_by_blocks(p_.codes.progress + DirectProgress(p_.rows).largest(results.row + half * 8),
                             half == 1 ? bits & 0xffff0000u : bits << 16);
    }
  }

  const DirectParams& p_;
  const DirectShared<Tile>& shared_;
  const int group_;
  const int lane_;
  float* const scales_;  // of the tile's weights; behind them their biases, and the scales of the warp's rows
  const std::uint32_t empty_;
  const std::uint64_t tokens_;  // of the ring's first step
  const std::uint64_t weights_;
  DirectPlace<Tile> place_;
  int last_step_ = 0;
};

}  // namespace onerec::cuda::kernels
