// small_linear whose x every block makes for itself, in shared memory: for few rows that costs less than a kernel of
// their own, and the weights are on their way meanwhile. x and the sums are those of the separate kernels, bit for bit.
#pragma once

#include "backends/cuda/kernels/rms_norm.cuh"
#include "backends/cuda/kernels/small_linear.cuh"
#include "backends/cuda/kernels/swiglu.cuh"

namespace onerec::cuda::kernels {

// What x is made by. Where W has codes, the values are coded per row.
enum class RowMaker { kNorm, kSwiglu, kCopy };

// Where x is made from: rows of T.
struct RowSource {
  const void* rows = nullptr;  // [rows, inputs]; kSwiglu: [rows, 2 * inputs], gates before ups
  std::int64_t stride = 0;
  const float* gamma = nullptr;  // kNorm
  float inverse_width = 0.0f;    // kNorm: 1 / inputs
  float eps = 0.0f;
  float code_scale = 0.0f;            // kNorm: of codes, where root_power() is 1
  int members = kSmallLinearThreads;  // threads that share a row; kNorm: as many as rms_norm_kernel's teams have
};

// Vectors of a row that a thread holds.
template <RowMaker kMaker>
inline constexpr int kMadeVectors = kMaker == RowMaker::kSwiglu ? 4 : 2;

// A thread's share of a row of `vectors` vectors of T. The members of the block's team hold all of it.
template <class T, RowMaker kMaker, bool kCoded>
struct MadeRow {
  static constexpr int kVectors = kMadeVectors<kMaker>;
  static constexpr int kN = kVector<T>;
  using Team = BlockTeam<kSmallLinearThreads>;

  int vectors;
  int members;
  float gamma[kMaker == RowMaker::kNorm ? kVectors : 1][kN];
  float values[kVectors][kN];
  float code_scale;  // kNorm, coded: of the values, and the row's
  float row_scale;

  // Reads what is constant.
  __device__ __forceinline__ MadeRow(const RowSource& from, std::int64_t width)
      : vectors(static_cast<int>(width / kN)), members(from.members) {
    if constexpr (kMaker == RowMaker::kNorm) {
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        if (holds(i)) load_floats(from.gamma + vector(i) * kN, gamma[i]);
      }
    }
  }

  __device__ __forceinline__ int vector(int i) const { return static_cast<int>(threadIdx.x) + i * members; }
  __device__ __forceinline__ bool holds(int i) const {
    return static_cast<int>(threadIdx.x) < members && vector(i) < vectors;
  }
  __device__ __forceinline__ uint4 load(const T* row, int i) const {
    return holds(i) ? load_vector(row + vector(i) * kN) : make_uint4(0, 0, 0, 0);
  }

  // What the thread has of a row as it is stored.
  struct Held {
    uint4 vectors[kVectors];  // kSwiglu: of gates
    uint4 ups[kMaker == RowMaker::kSwiglu ? kVectors : 1];
  };

  __device__ __forceinline__ Held load(const RowSource& from, std::int64_t row) const {
    const T* const at = static_cast<const T*>(from.rows) + row * from.stride;
    Held held;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      held.vectors[i] = load(at, i);
      if constexpr (kMaker == RowMaker::kSwiglu) held.ups[i] = load(at + vectors * kN, i);
    }
    return held;
  }

  // Every thread of the block calls it.
  __device__ __forceinline__ void make(const Held& held, const RowSource& from, Team& team) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      unpack<T>(held.vectors[i], values[i]);
      if constexpr (kMaker == RowMaker::kSwiglu) {
        float up[kN];
        unpack<T>(held.ups[i], up);
#pragma unroll
        for (int j = 0; j < kN; ++j) values[i][j] = silu_product(values[i][j], up[j]);
      }
    }
    if constexpr (kMaker == RowMaker::kNorm) {
      const float squares = team.sum(sum_of_squares(values));
      float rstd = 1.0f;
      if constexpr (kCoded) {
        // Codes are of values times gamma; the norm's factor goes to the row's scale.
        const float mean_square = squares * from.inverse_width;
        code_scale = root_power(mean_square) * from.code_scale;
        row_scale = code_scale * finite_inverse_root(mean_square, from.eps);
      } else {
        rstd = reciprocal_root(fmaf(squares, from.inverse_width, from.eps));
      }
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        if (!holds(i)) continue;  // stays 0 even if rstd is infinite
#pragma unroll
        for (int j = 0; j < kN; ++j) values[i][j] = values[i][j] * rstd * gamma[i][j];
      }
    }
  }

  // Codes and their scale, both in shared memory. Every thread of the block calls it.
  __device__ __forceinline__ void store(std::uint8_t* x, float* scale_of_row, Team& team) const {
    float inverse;
    if constexpr (kMaker == RowMaker::kNorm) {
      inverse = inverse_power(code_scale);
      if (threadIdx.x == 0) *scale_of_row = row_scale;
    } else {
      float largest = 0.0f;
#pragma unroll
      for (int i = 0; i < kVectors; ++i) largest = max_or_nan(largest, magnitude_of(values[i]));
      const float scale = e4m3_scale(team.max_magnitude(largest));
      inverse = e4m3_inverse(scale);
      if (threadIdx.x == 0) *scale_of_row = scale;
    }
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (holds(i)) store_codes(x + vector(i) * kN, values[i], inverse);
    }
  }

  __device__ __forceinline__ void store(T* x, float*, Team&) const {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (holds(i)) store_vector(x + vector(i) * kN, pack<T>(values[i]));
    }
  }
};

__host__ __device__ constexpr std::int64_t prepared_linear_bytes(std::int64_t inputs, std::int64_t value_bytes,
                                                                 int rows) {
  return small_linear_slots() * static_cast<std::int64_t>(sizeof(uint4)) + rows * inputs * value_bytes;
}

// Blocks that a multiprocessor holds.
template <RowMaker kMaker, int kRows>
inline constexpr int kPreparedBlocks = kMaker == RowMaker::kSwiglu || kRows > 1 ? 2 : 3;

// At most kRows rows, whole vectors everywhere, W of one expert and without scales of blocks; p.x, p.x_scales and
// p.vectors are not looked at. Nothing that `from` names overlaps y. Grid: small_linear_blocks() or fewer (a block then
// makes its rows once for several groups of outputs). Dynamic shared memory: prepared_linear_bytes().
template <WeightKind kKind, class Y, int kRows, class T, RowMaker kMaker>
__global__ void __launch_bounds__(kSmallLinearThreads, kPreparedBlocks<kMaker, kRows>)
    prepared_linear_kernel(SmallLinearParams p, const __grid_constant__ RowSource from) {
  using Value = typename WeightTraits<kKind>::Value;
  static_assert(kKind == WeightKind::kFp8Channel || std::is_same_v<T, Value>, "dense values are made as they are read");
  __shared__ float parts[kSmallLinearWarps][kRows * kSmallLinearOutputs];
  __shared__ float scales[kRows];
  auto* const slots = dynamic_shared<uint4>();
  auto* const x = reinterpret_cast<Value*>(slots + small_linear_slots());
  p.vectors = 1;  // known to the compiler
  const std::int64_t groups = small_linear_blocks(p.outputs, p.split);
  const OutputShare first(p, blockIdx.x);
  WeightStream<kKind> weights(first, slots);
  weights.start(p, first, 0);
  for (std::int64_t group = blockIdx.x; group < groups; group += gridDim.x) {
    weights.prefetch(p, OutputShare(p, group), group == blockIdx.x ? kSmallLinearAhead : 0);
  }
  OutputPlace<kKind, Y> place(p, first, 0);
  MadeRow<T, kMaker, std::is_same_v<Value, std::uint8_t>> made(from, p.inputs);
  overlap_with_neighbours();

  auto held = made.load(from, 0);  // beside the number of rows
  const RowChunk chunk = find_chunk<kRows>(p, 0);
  BlockTeam<kSmallLinearThreads> team;
  for (int r = 0; r < chunk.count; ++r) {
    made.make(held, from, team);
    if (r + 1 < chunk.count) held = made.load(from, r + 1);
    made.store(x + r * p.inputs, scales + r, team);
  }
  __syncthreads();
  if (chunk.count > 0) {  // the same for all threads
    p.x = x;
    p.x_stride = p.inputs;
    p.x_scales = scales;
    for (std::int64_t group = blockIdx.x; group < groups; group += gridDim.x) {
      multiply_chunk<kKind, Y, kRows>(p, OutputShare(p, group), place, chunk, weights, parts, [&] {
        const std::int64_t next = group + gridDim.x;
        if (next < groups) weights.start(p, OutputShare(p, next), 0);
      });
      if (group + gridDim.x < groups) place = OutputPlace<kKind, Y>(p, OutputShare(p, group + gridDim.x), 0);
    }
  }
  wait_for_copies<0>();
}

}  // namespace onerec::cuda::kernels
