// RMSNorm of rows or of groups of a row, stored, quantised, or both.
#pragma once

#include "backends/cuda/kernels/grid_dependency.cuh"
#include "backends/cuda/kernels/row_quantize.cuh"

namespace onerec::cuda::kernels {

enum class Element : std::uint8_t { kNone, kF32, kBF16 };

// A part of `rows` is a group. Group g of row r lies at x + r * x_stride + g * width.
struct RmsNormArguments {
  RowParts rows = {};
  std::int64_t width = 0;
  float inverse_width = 0.0f;  // 1 / width
  const void* x = nullptr;
  std::int64_t x_stride = 0;
  const float* gamma = nullptr;
  float eps = 0.0f;
  Element y_type = Element::kNone;
  void* y = nullptr;
  std::int64_t y_stride = 0;
  CodeRows quantized = {};         // parts = 1
  CodeRows quantized_blocks = {};  // parts = 1, per block
};

template <int kN>
__device__ __forceinline__ void store_rounded(Element type, void* base, std::int64_t offset,
                                              const float (&values)[kN]) {
  if (type == Element::kF32) {
    float4* const to = reinterpret_cast<float4*>(static_cast<float*>(base) + offset);
#pragma unroll
    for (int i = 0; i < kN / 4; ++i) {
      to[i] = make_float4(values[4 * i], values[4 * i + 1], values[4 * i + 2], values[4 * i + 3]);
    }
  } else {
    bf16* const to = static_cast<bf16*>(base) + offset;
    if constexpr (kN == 8) {
      store_vector(to, pack<bf16>(values));
    } else {
      const auto low = bits_as<std::uint32_t>(__floats2bfloat162_rn(values[0], values[1]));
      const auto high = bits_as<std::uint32_t>(__floats2bfloat162_rn(values[2], values[3]));
      *reinterpret_cast<uint2*>(to) = make_uint2(low, high);
    }
  }
}

// The factors of a thread's vectors, the same in every group.
template <class Team, int kVectors, int kN>
__device__ __forceinline__ void load_gamma(const RmsNormArguments& p, float (&gamma)[kVectors][kN]) {
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int vector = Team::member() + i * Team::members();
#pragma unroll
    for (int j = 0; j < kN; j += 4) {
      const float4 factors =
          vector < p.rows.part_vectors
              ? *reinterpret_cast<const float4*>(p.gamma + static_cast<std::int64_t>(vector) * kN + j)
              : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      gamma[i][j] = factors.x;
      gamma[i][j + 1] = factors.y;
      gamma[i][j + 2] = factors.z;
      gamma[i][j + 3] = factors.w;
    }
  }
}

template <int kVectors, int kN>
__device__ __forceinline__ float sum_of_squares(const float (&values)[kVectors][kN]) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
#pragma unroll
    for (int j = 0; j < kN; ++j) sum += values[i][j] * values[i][j];
  }
  return sum;
}

// Normalises the part of a row that a team has in `values`, 0 behind its end, and stores what is asked for. Every
// thread of the team calls it.
template <class Team, int kVectors, int kN>
__device__ __forceinline__ void normalise_part(Team& team, const RmsNormArguments& p, const RowPart& at,
                                               const float (&gamma)[kVectors][kN], float (&values)[kVectors][kN]) {
  const float rstd = reciprocal_root(fmaf(team.sum(sum_of_squares(values)), p.inverse_width, p.eps));
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (row_vector<Team>(at, i) >= at.end) continue;  // stays 0 even if rstd is infinite
#pragma unroll
    for (int j = 0; j < kN; ++j) values[i][j] = values[i][j] * rstd * gamma[i][j];
  }
  if (p.y_type != Element::kNone) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int vector = row_vector<Team>(at, i);
      if (vector >= at.end) continue;
      store_rounded(p.y_type, p.y, at.row * p.y_stride + static_cast<std::int64_t>(vector) * kN, values[i]);
    }
  }
  if (p.quantized.kind != Codes::kNone) quantize_part(team, p.quantized, at, values);
  if (p.quantized_blocks.kind != Codes::kNone) quantize_part(team, p.quantized_blocks, at, values);
}

// Widths are multiples of a vector of T; x, y, gamma and their rows are aligned to vectors of T, codes to its elements.
// gamma is constant and therefore read before the wait: it comes from memory while the kernel before this one ends.
template <class T, class Team, int kVectors>
__global__ void __launch_bounds__(Team::kMaxThreads, kVectors > 2 ? 1 : kResidentThreads / Team::kMaxThreads)
    rms_norm_kernel(const __grid_constant__ RmsNormArguments p) {
  constexpr int kN = kVector<T>;
  float gamma[kVectors][kN];
  load_gamma<Team>(p, gamma);
  overlap_with_neighbours();
  Team team;
  const auto load = [&](const RowPart& at) {
    return load_row_vectors<T, Team, kVectors>(static_cast<const T*>(p.x) + at.row * p.x_stride, at);
  };
  const auto process = [&](const RowPart& at, const RowVectors<kVectors>& held) {
    float values[kVectors][kN];
#pragma unroll
    for (int i = 0; i < kVectors; ++i) unpack<T>(held.vector[i], values[i]);
    normalise_part(team, p, at, gamma, values);
  };
  for_row_parts<Team>(p.rows, load, process);
}

// Any width and alignment; p.rows gives the numbers of rows and of groups only. A block takes a group at a time.
template <class T>
__global__ void __launch_bounds__(256) rms_norm_plain_kernel(RmsNormArguments p) {
  overlap_with_neighbours();
  const std::int64_t live = (p.rows.count == nullptr ? p.rows.rows : *p.rows.count) * p.rows.parts;
  for (std::int64_t index = blockIdx.x; index < live; index += gridDim.x) {
    const std::int64_t row = index / p.rows.parts;
    const std::int64_t first = index % p.rows.parts * p.width;
    const T* const x = static_cast<const T*>(p.x) + row * p.x_stride + first;
    float sum = 0.0f;
    for (std::int64_t c = threadIdx.x; c < p.width; c += blockDim.x) sum += to_float(x[c]) * to_float(x[c]);
    const float rstd = reciprocal_root(fmaf(block_sum(sum), p.inverse_width, p.eps));
    const auto norm = [&](std::int64_t c) { return to_float(x[c]) * rstd * p.gamma[c]; };
    if (p.quantized.kind != Codes::kNone) quantize_row_plain(p.quantized, row, p.width, norm);
    if (p.quantized_blocks.kind != Codes::kNone) quantize_row_plain(p.quantized_blocks, row, p.width, norm);
    if (p.quantized.kind != Codes::kNone) __syncthreads();  // y may be x
    if (p.y_type == Element::kNone) continue;
    for (std::int64_t c = threadIdx.x; c < p.width; c += blockDim.x) {
      const std::int64_t offset = row * p.y_stride + first + c;
      if (p.y_type == Element::kF32) {
        static_cast<float*>(p.y)[offset] = norm(c);
      } else {
        static_cast<bf16*>(p.y)[offset] = from_float<bf16>(norm(c));
      }
    }
  }
}

}  // namespace onerec::cuda::kernels
