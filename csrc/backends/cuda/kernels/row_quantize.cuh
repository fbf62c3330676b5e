// E4M3 codes and scales of rows whose values a team holds in registers, or makes when asked.
#pragma once

#include "backends/cuda/kernels/row_team.cuh"

namespace onerec::cuda::kernels {

enum class Codes : std::uint8_t { kNone, kPerRow, kPerBlock };

// Where codes go: row r has its codes at codes + r * stride and the scale of block b (0 for kPerRow) at
// scales[b * scale_stride + r].
struct CodeRows {
  Codes kind = Codes::kNone;
  std::uint8_t* codes = nullptr;
  std::int64_t stride = 0;
  float* scales = nullptr;
  std::int64_t scale_stride = 0;
};

template <int kN>
__device__ __forceinline__ float magnitude_of(const float (&values)[kN]) {
  float largest = 0.0f;
#pragma unroll
  for (int i = 0; i < kN; ++i) largest = max_or_nan(largest, fabsf(values[i]));
  return largest;
}

// Codes of values of a group whose scale is 1 / inverse. kN is 4 or 8; `to` is a multiple of it.
template <int kN>
__device__ __forceinline__ void store_codes(std::uint8_t* to, const float (&values)[kN], float inverse) {
  static_assert(kN == 4 || kN == 8, "the elements of a vector");
  std::uint32_t codes[kN / 4];
  const auto convert = [&](auto four) {
#pragma unroll
    for (int i = 0; i < kN; i += 4) {
      codes[i / 4] =
          four(values[i] * inverse, values[i + 1] * inverse, values[i + 2] * inverse, values[i + 3] * inverse);
    }
  };
  if (inverse > 0.0f) {  // the scale is finite, and no product NaN
    convert([](float a, float b, float c, float d) { return numbers_to_e4m3x4(a, b, c, d); });
  } else {
    convert([](float a, float b, float c, float d) { return to_e4m3x4(a, b, c, d); });
  }
  if constexpr (kN == 8) {
    *reinterpret_cast<uint2*>(to) = make_uint2(codes[0], codes[1]);
  } else {
    *reinterpret_cast<std::uint32_t*>(to) = codes[0];
  }
}

// values[i]: the thread's i-th vector of the part, 0 behind its end. kPerRow: the part is the row. Every thread of the
// team calls it. Part starts are multiples of a scale block.
template <class Team, int kVectors, int kN>
__device__ __forceinline__ void quantize_part(Team& team, const CodeRows& to, const RowPart& at,
                                              const float (&values)[kVectors][kN]) {
  std::uint8_t* const codes = to.codes + at.row * to.stride;
  if (to.kind == Codes::kPerRow) {
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) largest = max_or_nan(largest, magnitude_of(values[i]));
    const float scale = e4m3_scale(team.max_magnitude(largest));
    const float inverse = e4m3_inverse(scale);
    if (Team::member() == 0 && at.end > 0) to.scales[at.row] = scale;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (!has_vector<Team, kVectors>(at, i)) continue;
      store_codes(codes + static_cast<std::int64_t>(row_vector<Team>(at, i)) * kN, values[i], inverse);
    }
    return;
  }
  constexpr int kBlockLanes = kScaleBlock / kN;  // lanes whose vectors share a scale
  constexpr int kLanes = kBlockLanes < Team::kScaleLanes ? kBlockLanes : Team::kScaleLanes;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const float scale = e4m3_scale(warp_max<kLanes>(magnitude_of(values[i])));
    if (!has_vector<Team, kVectors>(at, i)) continue;
    const int vector = row_vector<Team>(at, i);
    const float inverse = e4m3_inverse(scale);
    if (vector % kBlockLanes == 0) to.scales[vector / kBlockLanes * to.scale_stride + at.row] = scale;
    store_codes(codes + static_cast<std::int64_t>(vector) * kN, values[i], inverse);
  }
}

// The same for any width and alignment: a block codes the row, asking make(column) for each value twice. Every thread
// of the block calls it.
template <class Make>
__device__ __forceinline__ void quantize_row_plain(const CodeRows& to, std::int64_t row, std::int64_t cols,
                                                   const Make& make) {
  std::uint8_t* const codes = to.codes + row * to.stride;
  if (to.kind == Codes::kPerRow) {
    float largest = 0.0f;
    for (std::int64_t c = threadIdx.x; c < cols; c += blockDim.x) largest = max_or_nan(largest, fabsf(make(c)));
    const float scale = e4m3_scale(block_max_magnitude(largest));
    const float inverse = e4m3_inverse(scale);
    if (threadIdx.x == 0) to.scales[row] = scale;
    for (std::int64_t c = threadIdx.x; c < cols; c += blockDim.x) codes[c] = to_e4m3(make(c) * inverse);
    return;
  }
  const std::int64_t blocks = (cols + kScaleBlock - 1) / kScaleBlock;
  for (std::int64_t b = warp_index(); b < blocks; b += blockDim.x / kWarp) {
    constexpr int kPerLane = kScaleBlock / kWarp;
    float values[kPerLane];
    const std::int64_t first = b * kScaleBlock + lane_index();
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) values[i] = first + i * kWarp < cols ? make(first + i * kWarp) : 0.0f;
    const float scale = e4m3_scale(warp_max(magnitude_of(values)));
    const float inverse = e4m3_inverse(scale);
    if (lane_index() == 0) to.scales[b * to.scale_stride + row] = scale;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (first + i * kWarp < cols) codes[first + i * kWarp] = to_e4m3(values[i] * inverse);
    }
  }
}

}  // namespace onerec::cuda::kernels
