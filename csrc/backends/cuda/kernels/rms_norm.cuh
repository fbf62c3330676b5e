// RMSNorm of rows or of groups of a row, stored, quantised, or both.
#pragma once

#include "backends/cuda/kernels/async_copy.cuh"
#include "backends/cuda/kernels/grid_dependency.cuh"
#include "backends/cuda/kernels/pending_norm.cuh"
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
  float code_scale = 0.0f;         // of codes per row, where root_power() is 1
  PendingTarget pending = {};      // of `quantized`, then per row
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

// The factors of a thread's vectors, the same in every group, in its registers. They are constant: loaded before the
// wait, they come from memory while the kernel before this one ends.
template <class Team, int kVectors, int kN>
class NormFactors {
 public:
  __device__ __forceinline__ explicit NormFactors(const RmsNormArguments& p) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int vector = Team::member() + i * Team::members();
#pragma unroll
      for (int j = 0; j < kN; j += 4) {
        const float4 factors =
            vector < p.rows.part_vectors
                ? *reinterpret_cast<const float4*>(p.gamma + static_cast<std::int64_t>(vector) * kN + j)
                : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        kept_[i][j] = factors.x;
        kept_[i][j + 1] = factors.y;
        kept_[i][j + 2] = factors.z;
        kept_[i][j + 3] = factors.w;
      }
    }
  }
  // Of every thread of the block, before the first use.
  __device__ __forceinline__ void wait() const {}
  __device__ __forceinline__ float at(int vector, int element) const { return kept_[vector][element]; }

 private:
  float kept_[kVectors][kN];
};

// The same in dynamic shared memory, for a warp that holds a row. In two halves, so that the lanes of a warp read
// neighbouring 16 bytes.
template <int kVectors>
class NormFactors<WarpTeam, kVectors, 8> {
 public:
  static constexpr int kBytes = kVectors * kWarp * 8 * static_cast<int>(sizeof(float));

  __device__ __forceinline__ explicit NormFactors(const RmsNormArguments& p) : shared_(dynamic_shared<float4>()) {
    for (int i = static_cast<int>(threadIdx.x); i < 2 * p.rows.part_vectors; i += static_cast<int>(blockDim.x)) {
      copy_vector_async(reinterpret_cast<uint4*>(shared_ + i % 2 * kHalf + i / 2), p.gamma + 4 * i);
    }
    close_copies();
  }
  __device__ __forceinline__ void wait() const {
    wait_for_copies<0>();
    __syncthreads();
  }
  __device__ __forceinline__ float at(int vector, int element) const {
    const float4 four = shared_[element / 4 * kHalf + vector * kWarp + lane_index()];
    const float factors[4] = {four.x, four.y, four.z, four.w};
    return factors[element % 4];
  }

 private:
  static constexpr int kHalf = kVectors * kWarp;
  float4* shared_;
};

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

// Of all values that the team holds. Every thread of the team calls it.
template <class Team, int kVectors, int kN>
__device__ __forceinline__ float team_sum_of_squares(Team& team, const float (&values)[kVectors][kN]) {
  if constexpr (std::is_same_v<Team, WarpTeam>) {
    constexpr int kSums = (kVectors + 1) / 2;
    float sums[kSums] = {};
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
#pragma unroll
      for (int j = 0; j < kN; ++j) sums[i % kSums] += values[i][j] * values[i][j];
    }
    return WarpTeam::sum_as_block(sums);
  } else {
    return team.sum(sum_of_squares(values));
  }
}

// The scale of a row's codes, all but the factor that makes them the norm's: `mean_square` says that.
struct NormScale {
  float mean_square;
  float root;   // a power of two
  float scale;  // another one

  __device__ __forceinline__ NormScale(const RmsNormArguments& p, float squares)
      : mean_square(squares * p.inverse_width), root(root_power(mean_square)), scale(root * p.code_scale) {}
};

// By one thread for each row.
__device__ __forceinline__ void store_norm_scale(const RmsNormArguments& p, std::int64_t row, float squares,
                                                 const NormScale& of) {
  if (p.pending.squares == nullptr) {
    p.quantized.scales[row] = of.scale * finite_inverse_root(of.mean_square, p.eps);
    return;
  }
  p.quantized.scales[row] = of_finite_row(of.mean_square, of.scale);
  p.pending.squares[row] = square_parts(squares, inverse_power(of.root));
  p.pending.next_squares[row] = 0;
}

// Codes per row of the norm of a row that a team has in `values`.
template <class Team, int kVectors, int kN>
__device__ __forceinline__ void code_row(const RmsNormArguments& p, const RowPart& at,
                                         const NormFactors<Team, kVectors, kN>& gamma, float squares,
                                         const float (&values)[kVectors][kN]) {
  const NormScale of(p, squares);
  if (Team::member() == 0 && at.end > 0) store_norm_scale(p, at.row, squares, of);
  const float inverse = inverse_power(of.scale);
  std::uint8_t* const codes = p.quantized.codes + at.row * p.quantized.stride;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (!has_vector<Team, kVectors>(at, i)) continue;
    float products[kN];
#pragma unroll
    for (int j = 0; j < kN; ++j) products[j] = values[i][j] * gamma.at(i, j);
    store_codes(codes + static_cast<std::int64_t>(row_vector<Team>(at, i)) * kN, products, inverse);
  }
}

// Normalises the part of a row that a team has in `values`, 0 behind its end, and stores what is asked for. Every
// thread of the team calls it.
template <class Team, int kVectors, int kN>
__device__ __forceinline__ void normalise_part(Team& team, const RmsNormArguments& p, const RowPart& at,
                                               const NormFactors<Team, kVectors, kN>& gamma,
                                               float (&values)[kVectors][kN]) {
  const float squares = team_sum_of_squares(team, values);
  const bool codes_of_row = p.quantized.kind == Codes::kPerRow;
  if (codes_of_row) code_row(p, at, gamma, squares, values);
  if (codes_of_row && p.y_type == Element::kNone && p.quantized_blocks.kind == Codes::kNone) return;
  const float rstd = reciprocal_root(fmaf(squares, p.inverse_width, p.eps));
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (!has_vector<Team, kVectors>(at, i)) continue;  // stays 0 even if rstd is infinite
#pragma unroll
    for (int j = 0; j < kN; ++j) values[i][j] = values[i][j] * rstd * gamma.at(i, j);
  }
  if (p.y_type != Element::kNone) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (!has_vector<Team, kVectors>(at, i)) continue;
      const std::int64_t column = static_cast<std::int64_t>(row_vector<Team>(at, i)) * kN;
      store_rounded(p.y_type, p.y, at.row * p.y_stride + column, values[i]);
    }
  }
  if (p.quantized.kind == Codes::kPerBlock) quantize_part(team, p.quantized, at, values);
  if (p.quantized_blocks.kind != Codes::kNone) quantize_part(team, p.quantized_blocks, at, values);
}

// Widths are multiples of a vector of T; x, y, gamma and their rows are aligned to vectors of T, codes to its elements.
template <class T, class Team, int kVectors>
__global__ void __launch_bounds__(Team::kMaxThreads, resident_row_blocks<Team>(kVectors))
    rms_norm_kernel(const __grid_constant__ RmsNormArguments p) {
  constexpr int kN = kVector<T>;
  NormFactors<Team, kVectors, kN> gamma(p);
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
  for_row_parts<Team>(p.rows, load, process, [&] { gamma.wait(); });
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
    const float squares = block_sum(sum);
    const float rstd = reciprocal_root(fmaf(squares, p.inverse_width, p.eps));
    const auto norm = [&](std::int64_t c) { return to_float(x[c]) * rstd * p.gamma[c]; };
    if (p.quantized.kind == Codes::kPerRow) {
      const NormScale of(p, squares);
      if (threadIdx.x == 0) store_norm_scale(p, row, squares, of);
      std::uint8_t* const codes = p.quantized.codes + row * p.quantized.stride;
      for (std::int64_t c = threadIdx.x; c < p.width; c += blockDim.x) {
        codes[c] = to_e4m3(to_float(x[c]) * p.gamma[c] * inverse_power(of.scale));
      }
    }
    if (p.quantized.kind == Codes::kPerBlock) quantize_row_plain(p.quantized, row, p.width, norm);
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
