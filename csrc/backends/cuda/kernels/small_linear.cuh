// y = x W^T on the ordinary cores, for every weight format, shape and alignment. Made to stream weights at the
// memory's bandwidth when there are few rows; correct for any number of them.
//
// A warp owns kOutputs neighbouring outputs. Its lanes stride over K in vectors of 16 bytes, which belong to all rows
// of a chunk of kRows rows. Where the outputs alone give too few warps, `split` warps of a block share the K of the
// same outputs. Sums are taken in an order that depends on K and `split` alone, so that a row has the same bits in
// every batch. A warp's first weights are under way before the kernel waits for the one before it: no kernel writes
// weights, and memory is busy while that one ends.
//
// Grouped rows: set `offsets` (rows [offsets[e], offsets[e + 1]) of x and y belong to expert e; offsets[experts] is the
// number of live rows); values and scales of the experts lie one behind the other. A chunk never spans two experts.
// Grid: x = small_linear_blocks(), y = small_linear_chunks() or fewer (the kernel loops), block = kSmallLinearThreads.
#pragma once

#include "backends/cuda/kernels/async_copy.cuh"
#include "backends/cuda/kernels/block.cuh"
#include "backends/cuda/kernels/code_products.cuh"
#include "backends/cuda/kernels/grid_dependency.cuh"
#include "backends/cuda/kernels/numeric.cuh"

namespace onerec::cuda::kernels {

enum class WeightKind { kFloat, kBf16, kFp8Channel, kFp8Block };

struct SmallLinearParams {
  const void* x = nullptr;  // [rows, inputs] of the weight's value type
  std::int64_t x_stride = 0;
  const float* x_scales = nullptr;  // of row r (and block b): x_scales[b * x_scale_stride + r]
  std::int64_t x_scale_stride = 0;
  const void* weights = nullptr;         // [experts, outputs, inputs]
  const float* weight_scales = nullptr;  // [experts, outputs] or [experts, blocks of outputs, blocks of inputs]
  const float* bias = nullptr;           // [outputs] or null
  const void* residual = nullptr;        // [rows, outputs] of y's type, or null; may be y
  std::int64_t residual_stride = 0;
  void* y = nullptr;  // [rows, outputs]
  std::int64_t y_stride = 0;
  std::int64_t rows = 0;  // capacity
  std::int64_t outputs = 0;
  std::int64_t inputs = 0;
  const std::int32_t* count = nullptr;    // live rows; null: all. Not with offsets
  const std::int32_t* offsets = nullptr;  // [experts + 1] or null
  int experts = 1;
  float negative_slope =
      1.0f;         // what negative values are multiplied with before the residual is added; 1: no activation
  int split = 1;    // warps that share the K of the same outputs: 1, 2, 4 or 8
  int vectors = 0;  // 1: rows of x and W start at multiples of 16 bytes and are whole vectors
};

inline constexpr int kSmallLinearThreads = 256;
inline constexpr int kSmallLinearWarps = kSmallLinearThreads / kWarp;
inline constexpr int kSmallLinearOutputs = 2;  // of a warp
inline constexpr int kSmallLinearAhead = 4;    // vectors of a lane and output that are under way

// Blocks that a multiprocessor holds.
constexpr int small_linear_resident(int rows) {
  if (rows == 1) return 4;
  return rows <= 4 ? 3 : 2;
}

// Vectors of shared memory that a block's weights pass through.
constexpr int small_linear_slots() { return kSmallLinearAhead * kSmallLinearOutputs * kSmallLinearThreads; }

__host__ __device__ inline std::int64_t small_linear_blocks(std::int64_t outputs, int split) {
  const std::int64_t per_block = kSmallLinearWarps / split * kSmallLinearOutputs;
  return (outputs + per_block - 1) / per_block;
}

// At most so many chunks of up to `chunk_rows` rows of one expert.
__host__ __device__ inline std::int64_t small_linear_chunks(std::int64_t rows, int experts, int chunk_rows) {
  const std::int64_t chunks = (rows + static_cast<std::int64_t>(experts) * (chunk_rows - 1)) / chunk_rows;
  return chunks < rows ? chunks : rows;
}

template <WeightKind kKind>
struct WeightTraits {
  using Value = std::conditional_t<kKind == WeightKind::kFloat, float,
                                   std::conditional_t<kKind == WeightKind::kBf16, bf16, std::uint8_t>>;
  static constexpr bool kCodes = kKind == WeightKind::kFp8Channel || kKind == WeightKind::kFp8Block;
  static constexpr int kVector = static_cast<int>(16 / sizeof(Value));
  static constexpr int kGroup = kCodes ? 8 : kVector;  // values that are converted at a time
  static constexpr int kGroupWords = kGroup * static_cast<int>(sizeof(Value)) / 4;
};

template <WeightKind kKind>
__device__ __forceinline__ float value_of(typename WeightTraits<kKind>::Value value) {
  if constexpr (WeightTraits<kKind>::kCodes) {
    return from_e4m3(value);
  } else {
    return to_float(value);
  }
}

// One group's values from its words.
template <WeightKind kKind>
__device__ __forceinline__ void unpack_group(const std::uint32_t* words, float (&values)[WeightTraits<kKind>::kGroup]) {
  if constexpr (WeightTraits<kKind>::kCodes) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float four[4];
      from_e4m3x4(words[i], four);
#pragma unroll
      for (int j = 0; j < 4; ++j) values[4 * i + j] = four[j];
    }
  } else {
    unpack<typename WeightTraits<kKind>::Value>(make_uint4(words[0], words[1], words[2], words[3]), values);
  }
}

template <WeightKind kKind>
__device__ __forceinline__ void load_group(const typename WeightTraits<kKind>::Value* from,
                                           float (&values)[WeightTraits<kKind>::kGroup]) {
  if constexpr (WeightTraits<kKind>::kCodes) {
    const uint2 codes = *reinterpret_cast<const uint2*>(from);
    const std::uint32_t words[2] = {codes.x, codes.y};
    unpack_group<kKind>(words, values);
  } else {
    const uint4 vector = load_vector(from);
    const std::uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
    unpack_group<kKind>(words, values);
  }
}

// Rows [begin, begin + count) of one expert.
struct RowChunk {
  std::int64_t begin = 0;
  int count = 0;  // 0: there is no such chunk
  int expert = 0;
};

// The index-th chunk of up to kRows live rows. Every lane of the warp calls it and gets the same answer.
template <int kRows>
__device__ __forceinline__ RowChunk find_chunk(const SmallLinearParams& p, std::int64_t index) {
  RowChunk chunk;
  if (p.offsets == nullptr) {
    const std::int64_t live = p.count == nullptr ? p.rows : *p.count;
    chunk.begin = index * kRows;
    const std::int64_t left = live - chunk.begin;
    chunk.count = static_cast<int>(left < 0 ? 0 : left < kRows ? left : kRows);
    return chunk;
  }
  const int lane = lane_index();
  std::int64_t before = 0;  // chunks of the experts behind us
  for (int base = 0; base < p.experts; base += kWarp) {
    const int expert = base + lane;
    const int begin = expert < p.experts ? p.offsets[expert] : 0;
    const int rows = expert < p.experts ? p.offsets[expert + 1] - begin : 0;
    const int chunks = (rows + kRows - 1) / kRows;
    int sum = chunks;  // of this lane and those below
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      const int below = __shfl_up_sync(kAllLanes, sum, step);
      if (lane >= step) sum += below;
    }
    const std::int64_t first = before + sum - chunks;
    const bool mine = index >= first && index < first + chunks;
    const unsigned owner = __ballot_sync(kAllLanes, mine);
    if (owner != 0) {
      const int at = mine ? static_cast<int>(index - first) * kRows : 0;
      const int source = __ffs(static_cast<int>(owner)) - 1;
      const int left = rows - at;
      chunk.begin = __shfl_sync(kAllLanes, begin + at, source);
      chunk.count = __shfl_sync(kAllLanes, left < kRows ? left : kRows, source);
      chunk.expert = base + source;
      return chunk;
    }
    before += __shfl_sync(kAllLanes, sum, kWarp - 1);
  }
  return chunk;
}

// The outputs of a block, and those of this warp.
struct OutputShare {
  int teams;           // warps that share outputs are a team
  std::int64_t block;  // the block's first output
  std::int64_t first;  // this warp's first; none if it is not below p.outputs
  int part;            // of `split` parts of K, the one that this warp takes
  int parts;

  // `group`: of small_linear_blocks().
  __device__ __forceinline__ OutputShare(const SmallLinearParams& p, std::int64_t group)
      : teams(kSmallLinearWarps / p.split),
        block(group * teams * kSmallLinearOutputs),
        first(block + warp_index() / p.split * kSmallLinearOutputs),
        part(warp_index() % p.split),
        parts(p.split) {}
};

// This lane's vectors of a warp's rows of W, on their way through shared memory. What L2 holds otherwise, contexts
// above all, is read again, weights are not. Turn t brings vector `first` + t *
// `step` of each output; kAhead turns are under way at a time.
template <WeightKind kKind>
class WeightStream {
 public:
  using Traits = WeightTraits<kKind>;
  using Value = typename Traits::Value;
  static constexpr int kOutputs = kSmallLinearOutputs;
  static constexpr int kAhead = kSmallLinearAhead;

  // `slots`: small_linear_slots() vectors of shared memory, of the whole block.
  __device__ __forceinline__ WeightStream(const OutputShare& share, uint4* slots)
      : slots_(slots + threadIdx.x), first_(share.part * kWarp + lane_index()), step_(share.parts * kWarp) {}

  // Turns from 0 on, of this expert's rows and these outputs; the first are brought. All earlier turns have been taken.
  __device__ __forceinline__ void start(const SmallLinearParams& p, const OutputShare& share, int expert) {
    vectors_ = p.vectors != 0 && share.first < p.outputs ? static_cast<int>(p.inputs / Traits::kVector) : 0;
    const Value* weights = static_cast<const Value*>(p.weights) + expert * p.outputs * p.inputs;
    row_ = weights + share.first * p.inputs;
    // Past the last output: that one again, for nobody.
    last_row_ = share.first + 1 < p.outputs ? p.inputs : 0;
    if constexpr (kKind == WeightKind::kFp8Block) {
      static_assert(kScaleBlock % kOutputs == 0, "a warp's outputs share their scales");
      const std::int64_t output_blocks = (p.outputs + kScaleBlock - 1) / kScaleBlock;
      const std::int64_t input_blocks = (p.inputs + kScaleBlock - 1) / kScaleBlock;
      block_scales_ = p.weight_scales + (expert * output_blocks + share.first / kScaleBlock) * input_blocks;
    }
#pragma unroll
    for (int turn = 0; turn < kAhead; ++turn) bring(turn);
  }

  // Asks for the block's rows of W, for L2, unless the first `turns` turns bring all of them.
  __device__ __forceinline__ void prefetch(const SmallLinearParams& p, const OutputShare& share, int turns) const {
    const std::int64_t vectors = p.vectors != 0 ? p.inputs / Traits::kVector : 0;
    const std::int64_t owned = std::int64_t{share.teams} * kOutputs;
    const std::int64_t left = p.outputs - share.block;
    if (turns * step_ >= vectors || left <= 0) return;
    prefetch_all_to_l2(static_cast<const Value*>(p.weights) + share.block * p.inputs,
                       (owned < left ? owned : left) * vectors * 16, read_once());
  }

  // Calls visit(vectors, column) for every turn, and brings new ones meanwhile.
  template <class Visit>
  __device__ __forceinline__ void each(const Visit& visit) {
    int turn = 0;
    for (int vector = first_; vector < vectors_; vector += step_, ++turn) {
      wait_for_copies<kAhead - 1>();
      uint4 vectors[kOutputs];
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) vectors[o] = *slot(turn, o);
      visit(vectors, vector * Traits::kVector);
      bring(turn + kAhead);
    }
  }

  // The same for a warp's lanes together: visit(vectors, column) is called in all of them, with zeros behind the last
  // vector.
  template <class Visit>
  __device__ __forceinline__ void each_together(const Visit& visit) {
    int turn = 0;
    for (int base = first_ - lane_index(); base < vectors_; base += step_, ++turn) {
      wait_for_copies<kAhead - 1>();
      const int vector = base + lane_index();
      uint4 vectors[kOutputs];
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) vectors[o] = vector < vectors_ ? *slot(turn, o) : make_uint4(0, 0, 0, 0);
      visit(vectors, vector * Traits::kVector);
      bring(turn + kAhead);
    }
  }

  // Element `column` of an output's row, for rows that are not whole vectors.
  __device__ __forceinline__ Value element(int output, std::int64_t column) const {
    return row_[output * last_row_ + column];
  }
  __device__ __forceinline__ float block_scale(std::int64_t block) const { return block_scales_[block]; }
  __device__ __forceinline__ int first() const { return first_; }
  __device__ __forceinline__ int step() const { return step_; }

 private:
  static_assert(kOutputs == 2, "a row, and the last row");

  __device__ __forceinline__ uint4* slot(int turn, int output) const {
    return slots_ + (turn % kAhead * kOutputs + output) * kSmallLinearThreads;
  }

  __device__ __forceinline__ void bring(int turn) const {
    const int vector = first_ + turn * step_;
    if (vector < vectors_) {
      const Value* from = row_ + vector * Traits::kVector;
      copy_vector_async(slot(turn, 0), from, read_once());
      copy_vector_async(slot(turn, 1), from + last_row_, read_once());
    }
    close_copies();
  }

  uint4* slots_;
  int vectors_ = 0;  // of a row; 0: none are brought
  int first_;
  int step_;
  const Value* row_ = nullptr;
  std::int64_t last_row_ = 0;  // elements behind row_
  const float* block_scales_ = nullptr;
};

// This lane's part of the sums of a chunk's rows times kSmallLinearOutputs outputs.
template <WeightKind kKind, int kRows>
struct SmallLinearSums {
  using Traits = WeightTraits<kKind>;
  using Value = typename Traits::Value;
  using Weights = WeightStream<kKind>;
  static constexpr int kOutputs = kSmallLinearOutputs;
  static constexpr bool kBlockScales = kKind == WeightKind::kFp8Block;

  const SmallLinearParams& p;
  const RowChunk& chunk;
  const Value* x;                // of the chunk's first row
  float sums[kRows * kOutputs];  // [row][output]

  __device__ __forceinline__ SmallLinearSums(const SmallLinearParams& params, const RowChunk& rows)
      : p(params), chunk(rows), x(static_cast<const Value*>(p.x) + chunk.begin * p.x_stride) {
#pragma unroll
    for (int i = 0; i < kRows * kOutputs; ++i) sums[i] = 0.0f;
  }

  __device__ __forceinline__ float scale(const Weights& weights, int row, std::int64_t column) const {
    const std::int64_t block = column / kScaleBlock;
    return p.x_scales[block * p.x_scale_stride + chunk.begin + row] * weights.block_scale(block);
  }

  // The vectors of W at `column`.
  __device__ __forceinline__ void add_vector(const Weights& weights, const uint4 (&vectors)[kOutputs], int column) {
#pragma unroll
    for (int g = 0; g < Traits::kVector / Traits::kGroup; ++g) {
      float w[kOutputs][Traits::kGroup];
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) {
        const std::uint32_t words[4] = {vectors[o].x, vectors[o].y, vectors[o].z, vectors[o].w};
        unpack_group<kKind>(words + g * Traits::kGroupWords, w[o]);
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (r >= chunk.count) continue;
        float v[Traits::kGroup];
        load_group<kKind>(x + r * p.x_stride + column + g * Traits::kGroup, v);
#pragma unroll
        for (int o = 0; o < kOutputs; ++o) {
          float& sum = sums[r * kOutputs + o];
          float part = kBlockScales ? 0.0f : sum;
#pragma unroll
          for (int i = 0; i < Traits::kGroup; ++i) part = fmaf(v[i], w[o][i], part);
          sum = kBlockScales ? fmaf(scale(weights, r, column), part, sum) : part;
        }
      }
    }
  }

  __device__ __forceinline__ void add_codes(Weights& weights) {
    CodeProducts products[kRows];
    weights.each_together([&](const uint4(&vectors)[kOutputs], int column) {
      const bool present = column < p.inputs;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (r >= chunk.count) continue;
        const uint4 v = present ? load_vector(x + r * p.x_stride + column) : make_uint4(0, 0, 0, 0);
        products[r].add(vectors[0], vectors[1], v);
      }
    });
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) sums[r * kOutputs + o] = products[r].share(o);
    }
  }

  __device__ __forceinline__ void add_vectors(Weights& weights) {
    if constexpr (kKind == WeightKind::kFp8Channel) {
      add_codes(weights);
    } else {
      weights.each([&](const uint4(&vectors)[kOutputs], int column) { add_vector(weights, vectors, column); });
    }
  }

  // Value by value, for any alignment.
  __device__ __forceinline__ void add_values(const Weights& weights) {
    for (std::int64_t k = weights.first(); k < p.inputs; k += weights.step()) {
      float w[kOutputs];
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) w[o] = value_of<kKind>(weights.element(o, k));
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (r >= chunk.count) continue;
        const float v = value_of<kKind>(x[r * p.x_stride + k]);
#pragma unroll
        for (int o = 0; o < kOutputs; ++o) {
          float& sum = sums[r * kOutputs + o];
          sum = kBlockScales ? fmaf(scale(weights, r, k), v * w[o], sum) : fmaf(v, w[o], sum);
        }
      }
    }
  }
};

// The sum of a block that this thread finishes, and what does not depend on rows: read early, since it comes from
// memory. y = round(activation(x_scale * (weight_scale * sum) + bias) + residual).
template <WeightKind kKind, class Y>
struct OutputPlace {
  int row;  // of a chunk; behind all of them: this thread finishes none
  int column;
  std::int64_t output;
  float weight_scale = 1.0f;
  float bias = 0.0f;

  __device__ __forceinline__ OutputPlace(const SmallLinearParams& p, const OutputShare& share, int expert) {
    // Threads count along the outputs of a row, of which there is a power of two.
    const int columns = share.teams * kSmallLinearOutputs;
    row = static_cast<int>(threadIdx.x) >> (__ffs(columns) - 1);
    column = static_cast<int>(threadIdx.x) & (columns - 1);
    output = share.block + column;
    if (output >= p.outputs) return;
    if constexpr (kKind == WeightKind::kFp8Channel) weight_scale = p.weight_scales[expert * p.outputs + output];
    if (p.bias != nullptr) bias = p.bias[output];
  }

  __device__ __forceinline__ bool is_of(const SmallLinearParams& p, const RowChunk& chunk) const {
    return row < chunk.count && output < p.outputs;
  }
  __device__ __forceinline__ float residual(const SmallLinearParams& p, std::int64_t at) const {
    return to_float(static_cast<const Y*>(p.residual)[at * p.residual_stride + output]);
  }
  __device__ __forceinline__ void store(const SmallLinearParams& p, std::int64_t at, float sum, float x_scale,
                                        float residual) const {
    if constexpr (kKind == WeightKind::kFp8Channel) sum = __fmul_rn(x_scale, __fmul_rn(weight_scale, sum));
    if (p.bias != nullptr) sum = __fadd_rn(sum, bias);
    if (!(sum > 0.0f)) sum = __fmul_rn(p.negative_slope, sum);
    if (p.residual != nullptr) sum = __fadd_rn(residual, sum);
    static_cast<Y*>(p.y)[at * p.y_stride + output] = from_float<Y>(sum);
  }
};

// Multiplies a chunk and writes its rows of y. Calls then() when all of the weights' turns have been taken. Every
// thread of the block calls it; holds barriers, the last one behind the last access to `parts`.
template <WeightKind kKind, class Y, int kRows, class Then>
__device__ __forceinline__ void multiply_chunk(const SmallLinearParams& p, const OutputShare& share,
                                               const OutputPlace<kKind, Y>& place, const RowChunk& chunk,
                                               WeightStream<kKind>& weights,
                                               float (&parts)[kSmallLinearWarps][kRows * kSmallLinearOutputs],
                                               const Then& then) {
  constexpr int kOutputs = kSmallLinearOutputs;
  constexpr int kSums = kRows * kOutputs;
  static_assert(kSmallLinearWarps * kSums <= kSmallLinearThreads, "a thread finishes one sum");
  const bool finishes = place.is_of(p, chunk);
  const std::int64_t at = chunk.begin + place.row;
  float x_scale = 1.0f;
  float residual = 0.0f;
  if (finishes) {
    if constexpr (kKind == WeightKind::kFp8Channel) x_scale = p.x_scales[at];
    if (p.residual != nullptr) residual = place.residual(p, at);
  }
  const int warp = warp_index();
  const int lane = lane_index();
  if (share.first < p.outputs) {
    SmallLinearSums<kKind, kRows> team(p, chunk);
    p.vectors != 0 ? team.add_vectors(weights) : team.add_values(weights);
    const float sum = scattered_warp_sum(team.sums);
    if (lane % (kWarp / kSums) == 0) parts[warp][lane / (kWarp / kSums)] = sum;
  }
  then();
  __syncthreads();
  if (finishes) {
    float sum = 0.0f;
    for (int s = 0; s < p.split; ++s) {
      sum += parts[place.column / kOutputs * p.split + s][place.row * kOutputs + place.column % kOutputs];
    }
    place.store(p, at, sum, x_scale, residual);
  }
  __syncthreads();
}

// Dynamic shared memory: small_linear_slots() vectors.
template <WeightKind kKind, class Y, int kRows>
__global__ void __launch_bounds__(kSmallLinearThreads, small_linear_resident(kRows))
    small_linear_kernel(SmallLinearParams p) {
  __shared__ float parts[kSmallLinearWarps][kRows * kSmallLinearOutputs];
  const OutputShare share(p, blockIdx.x);
  WeightStream<kKind> weights(share, dynamic_shared<uint4>());
  const bool grouped = p.offsets != nullptr;
  if (!grouped) {
    weights.start(p, share, 0);
    weights.prefetch(p, share, kSmallLinearAhead);
  }
  OutputPlace<kKind, Y> place(p, share, 0);
  overlap_with_neighbours();
  const std::int64_t chunks = small_linear_chunks(p.rows, grouped ? p.experts : 1, kRows);
  for (std::int64_t index = blockIdx.y; index < chunks; index += gridDim.y) {
    const RowChunk chunk = find_chunk<kRows>(p, index);
    if (chunk.count == 0) break;  // all threads: chunks behind have no rows either
    if (grouped || index != blockIdx.y) weights.start(p, share, chunk.expert);
    if (grouped) place = OutputPlace<kKind, Y>(p, share, chunk.expert);
    multiply_chunk<kKind, Y, kRows>(p, share, place, chunk, weights, parts, [] {});
  }
  wait_for_copies<0>();
}

}  // namespace onerec::cuda::kernels
