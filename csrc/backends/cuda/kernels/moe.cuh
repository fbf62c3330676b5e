// Moving rows to their experts and adding the experts' outputs up.
#pragma once

#include "backends/cuda/kernels/block.cuh"
#include "backends/cuda/kernels/grid_dependency.cuh"

namespace onerec::cuda::kernels {

inline constexpr int kGatherRows = 8;  // of a block, a warp each
inline constexpr int kGatherThreads = kGatherRows * kWarp;
inline constexpr int kCombineMaxThreads = 256;

// Rows of bytes with their scales; scale b of row r lies at scales[b * scale_stride + r].
struct GatherParams {
  const std::uint8_t* x;
  std::int64_t x_stride;
  std::uint8_t* sorted;
  std::int64_t sorted_stride;
  std::int64_t row_bytes;
  const float* x_scales;
  std::int64_t x_scale_stride;
  float* sorted_scales;
  std::int64_t sorted_scale_stride;
  int scale_blocks;             // 0: rows without scales
  const std::int32_t* sources;  // -1: padding
  std::int64_t rows;            // capacity
  const std::int32_t* count;    // live sorted rows; null: all
  std::uint32_t* cleared;       // [cleared_words], at most a word for each thread; made 0
  std::int64_t cleared_words;
};

// A warp copies a row in units of Unit, to which addresses and strides are aligned; the bytes left over one by one.
template <class Unit>
__device__ __forceinline__ void copy_row(const std::uint8_t* from, std::uint8_t* to, std::int64_t bytes) {
  constexpr int kLoads = 4;  // under way at a time
  const int lane = lane_index();
  const std::int64_t units = bytes / static_cast<int>(sizeof(Unit));
#pragma unroll 1
  for (std::int64_t first = lane; first < units; first += kLoads * kWarp) {
    Unit values[kLoads] = {};
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const std::int64_t i = first + j * kWarp;
      if (i < units) values[j] = reinterpret_cast<const Unit*>(from)[i];
    }
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const std::int64_t i = first + j * kWarp;
      if (i < units) reinterpret_cast<Unit*>(to)[i] = values[j];
    }
  }
  for (std::int64_t i = units * static_cast<int>(sizeof(Unit)) + lane; i < bytes; i += kWarp) to[i] = from[i];
}

template <class Unit>
__device__ __forceinline__ void clear_row(std::uint8_t* to, std::int64_t bytes) {
  const int lane = lane_index();
  const std::int64_t units = bytes / static_cast<int>(sizeof(Unit));
  for (std::int64_t i = lane; i < units; i += kWarp) reinterpret_cast<Unit*>(to)[i] = Unit{};
  for (std::int64_t i = units * static_cast<int>(sizeof(Unit)) + lane; i < bytes; i += kWarp) to[i] = 0;
}

template <class Unit>
__global__ void __launch_bounds__(kGatherThreads) gather_rows_kernel(GatherParams p) {
  overlap_with_neighbours();
  const std::int64_t thread = static_cast<std::int64_t>(blockIdx.x) * kGatherThreads + threadIdx.x;
  if (thread < p.cleared_words) p.cleared[thread] = 0;
  const std::int64_t rows = p.count == nullptr ? p.rows : *p.count;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kGatherRows;
  const std::int64_t row = first + warp_index();
  if (row < rows) {
    const std::int32_t source = p.sources[row];
    std::uint8_t* const to = p.sorted + row * p.sorted_stride;
    if (source < 0) {
      clear_row<Unit>(to, p.row_bytes);
    } else {
      copy_row<Unit>(p.x + source * p.x_stride, to, p.row_bytes);
    }
  }
  // Neighbouring threads take the same scale of neighbouring rows, which lie side by side in `sorted`.
  for (int i = static_cast<int>(threadIdx.x); i < p.scale_blocks * kGatherRows; i += kGatherThreads) {
    const std::int64_t r = first + i % kGatherRows;
    if (r >= rows) continue;
    const std::int64_t block = i / kGatherRows;
    const std::int32_t source = p.sources[r];
    p.sorted_scales[block * p.sorted_scale_stride + r] =
        source < 0 ? e4m3_scale(0.0f) : p.x_scales[block * p.x_scale_stride + source];
  }
}

template <class T>
struct CombineParams {
  const T* experts;  // [sorted rows, width]
  std::int64_t expert_stride;
  const std::int32_t* slots;  // [rows, top_k]
  const float* weights;       // [rows, top_k]
  int top_k;
  const T* shared;  // [rows, width] or null
  std::int64_t shared_stride;
  T* h;  // [rows, width]
  std::int64_t h_stride;
  std::int64_t width;
  const std::int32_t* count;  // live rows; null: all of the grid
};

// kColumns neighbouring elements as they lie in memory: one, or a vector of 16 bytes.
template <class T, int kColumns>
struct Packed {
  using Type = uint4;
  static __device__ __forceinline__ Type load(const T* from) { return load_vector(from); }
  static __device__ __forceinline__ void store(T* to, const float (&values)[kColumns]) {
    store_vector(to, pack<T>(values));
  }
  static __device__ __forceinline__ void unpack(Type packed, float (&values)[kColumns]) {
    kernels::unpack<T>(packed, values);
  }
};

template <class T>
struct Packed<T, 1> {
  using Type = T;
  static __device__ __forceinline__ Type load(const T* from) { return *from; }
  static __device__ __forceinline__ void store(T* to, const float (&values)[1]) { *to = from_float<T>(values[0]); }
  static __device__ __forceinline__ void unpack(Type packed, float (&values)[1]) { values[0] = to_float(packed); }
};

// Adds kExperts weighted outputs to `sum`, one after the other; all loads are under way before the first sum.
template <int kExperts, class T, int kColumns>
__device__ __forceinline__ void add_experts(const CombineParams<T>& p, const std::int32_t* slots, const float* weights,
                                            std::int64_t column, float (&sum)[kColumns]) {
  using Piece = Packed<T, kColumns>;
  typename Piece::Type outputs[kExperts];
#pragma unroll
  for (int j = 0; j < kExperts; ++j) outputs[j] = Piece::load(p.experts + slots[j] * p.expert_stride + column);
#pragma unroll
  for (int j = 0; j < kExperts; ++j) {
    const float weight = weights[j];
    float values[kColumns];
    Piece::unpack(outputs[j], values);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) sum[i] += weight * values[i];
  }
}

// kColumns of the new h of a row, before it is rounded.
template <class T, int kColumns>
__device__ __forceinline__ void combine_columns(const CombineParams<T>& p, std::int64_t row, std::int64_t column,
                                                float (&values)[kColumns]) {
  using Piece = Packed<T, kColumns>;
  const std::int32_t* const slots = p.slots + row * p.top_k;
  const float* const weights = p.weights + row * p.top_k;
  const auto old = Piece::load(p.h + row * p.h_stride + column);
  typename Piece::Type shared{};
  if (p.shared != nullptr) shared = Piece::load(p.shared + row * p.shared_stride + column);
  float sum[kColumns] = {};
  int done = 0;
  for (; p.top_k - done >= 4; done += 4) add_experts<4>(p, slots + done, weights + done, column, sum);
  switch (p.top_k - done) {
    case 3:
      add_experts<3>(p, slots + done, weights + done, column, sum);
      break;
    case 2:
      add_experts<2>(p, slots + done, weights + done, column, sum);
      break;
    case 1:
      add_experts<1>(p, slots + done, weights + done, column, sum);
      break;
  }
  if (p.shared != nullptr) {
    Piece::unpack(shared, values);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) sum[i] += values[i];
  }
  Piece::unpack(old, values);
#pragma unroll
  for (int i = 0; i < kColumns; ++i) values[i] += sum[i];
}

// A block per row. kColumns: 1, or kVector<T> where the width is a multiple of it and all rows start at multiples of
// 16 bytes.
template <class T, int kColumns>
__global__ void __launch_bounds__(kCombineMaxThreads) moe_combine_kernel(CombineParams<T> p) {
  overlap_with_neighbours();
  const std::int64_t row = blockIdx.x;
  if (p.count != nullptr && row >= *p.count) return;
  for (std::int64_t column = threadIdx.x * kColumns; column < p.width; column += blockDim.x * kColumns) {
    float values[kColumns];
    combine_columns(p, row, column, values);
    Packed<T, kColumns>::store(p.h + row * p.h_stride + column, values);
  }
}

}  // namespace onerec::cuda::kernels
