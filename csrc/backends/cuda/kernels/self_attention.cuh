// Self-attention over a handful of keys per row, found through the beams' ancestry.
#pragma once

#include "backends/cuda/kernels/async_copy.cuh"
#include "backends/cuda/kernels/grid_dependency.cuh"
#include "backends/cuda/kernels/row_quantize.cuh"

namespace onerec::cuda::kernels {

inline constexpr int kMaxKeys = 8;
inline constexpr int kFewKeys = 4;
inline constexpr int kSelfAttentionThreads = 512;

// Blocks of kSelfAttentionThreads, or as many threads in smaller ones, that a multiprocessor holds at a time.
template <class T>
constexpr int resident_attention_blocks(int most_keys) {
  return most_keys <= kFewKeys && kVector<T> == 8 ? 2 : 1;
}

// Step s left [., stride[s]] with q, k, v side by side. Row r sees rows ancestry[s][r] of the steps s < keys - 1, and
// itself in the last one.
struct SelfAttentionArguments {
  const std::int32_t* count = nullptr;  // live rows; null: all
  std::int32_t rows = 0;
  std::int32_t keys = 1;
  std::int32_t heads = 1;
  std::int32_t group = 1;  // heads that share keys and values
  std::int32_t head_dim = 0;
  std::int64_t key_column = 0;
  std::int64_t value_column = 0;
  float scale = 0.0f;
  const void* qkv[kMaxKeys] = {};
  std::int64_t stride[kMaxKeys] = {};
  const std::int32_t* ancestry[kMaxKeys] = {};
  std::int32_t rounds = 1;  // turns in which a block takes all heads
  void* out = nullptr;
  std::int64_t out_stride = 0;
  CodeRows quantized = {};  // kPerRow instead of `out`
  bool settled = false;     // all but qkv[keys - 1] may be read before the previous kernel has ended
};

__device__ __forceinline__ std::int32_t live_rows(const SelfAttentionArguments& p) {
  return p.count == nullptr ? p.rows : *p.count;
}

__device__ __forceinline__ std::int32_t seen_row(const SelfAttentionArguments& p, int s, std::int32_t row) {
  return s + 1 < p.keys ? p.ancestry[s][row] : row;
}

// The rows that a row sees.
template <int kMost>
struct SeenRows {
  std::int32_t at[kMost];
};

template <int kMost>
__device__ __forceinline__ SeenRows<kMost> seen_rows(const SelfAttentionArguments& p, std::int32_t row) {
  SeenRows<kMost> seen;
#pragma unroll
  for (int s = 0; s < kMost; ++s) seen.at[s] = seen_row(p, s, row);
  return seen;
}

template <class T>
__device__ __forceinline__ const T* token_at(const SelfAttentionArguments& p, int s, std::int64_t row) {
  return static_cast<const T*>(p.qkv[s]) + row * p.stride[s];
}

// Scores become numerators of the softmax. Returns one over their sum.
template <int kMost>
__device__ __forceinline__ float soften(float (&scores)[kMost], int keys) {
  float largest = scores[0];
#pragma unroll
  for (int s = 1; s < kMost; ++s) {
    if (s < keys) largest = fmaxf(largest, scores[s]);
  }
  float total = 0.0f;
#pragma unroll
  for (int s = 0; s < kMost; ++s) {
    if (s >= keys) continue;
    scores[s] = expf(scores[s] - largest);
    total += scores[s];
  }
  return 1.0f / total;
}

// A thread's vectors of a head: of the row's own query, and of keys and values.
template <int kMost>
struct HeadVectors {
  uint4 query = {};
  uint4 key[kMost] = {};
  uint4 value[kMost] = {};
};

// Where keys and values of a head's column begin among those of all heads.
__device__ __forceinline__ std::int64_t shared_column(const SelfAttentionArguments& p, std::int32_t head,
                                                      std::int32_t column) {
  return static_cast<std::int64_t>(head / p.group) * p.head_dim + column;
}

// The vector of a head whose kLanes lanes hold a vector of T each. At most kMost keys.
template <class T, int kLanes, int kMost>
__device__ __forceinline__ uint4 attend(const HeadVectors<kMost>& vectors, int keys, float scale) {
  constexpr int kN = kVector<T>;
  float q[kN];
  unpack<T>(vectors.query, q);
  float scores[kMost];
#pragma unroll
  for (int s = 0; s < kMost; ++s) {
    if (s >= keys) continue;
    float k[kN];
    unpack<T>(vectors.key[s], k);
    float dot = 0.0f;
#pragma unroll
    for (int j = 0; j < kN; ++j) dot += q[j] * k[j];
    scores[s] = scale * warp_sum<kLanes>(dot);
  }
  const float inverse = soften(scores, keys);
  float sum[kN] = {};
#pragma unroll
  for (int s = 0; s < kMost; ++s) {
    if (s >= keys) continue;
    float v[kN];
    unpack<T>(vectors.value[s], v);
#pragma unroll
    for (int j = 0; j < kN; ++j) sum[j] += scores[s] * v[j];
  }
#pragma unroll
  for (int j = 0; j < kN; ++j) sum[j] *= inverse;
  return pack<T>(sum);
}

// A head in kLanes lanes: the vector at `column` of the head, or nothing.
template <class T, int kLanes, int kMost>
__device__ __forceinline__ uint4 attend_head(const SelfAttentionArguments& p, const SeenRows<kMost>& seen,
                                             std::int32_t head, std::int32_t column) {
  const bool active = head < p.heads && column < p.head_dim;
  const std::int64_t own = static_cast<std::int64_t>(head) * p.head_dim + column;
  const std::int64_t shared = shared_column(p, head, column);
  HeadVectors<kMost> vectors;
#pragma unroll
  for (int s = 0; s < kMost; ++s) {
    if (!active || s >= p.keys) continue;
    const T* const token = token_at<T>(p, s, seen.at[s]);
    vectors.key[s] = load_vector(token + p.key_column + shared);
    vectors.value[s] = load_vector(token + p.value_column + shared);
    if (s + 1 == p.keys) vectors.query = load_vector(token + own);
  }
  return attend<T, kLanes>(vectors, p.keys, p.scale);
}

// A block takes a row, kLanes lanes a head. head_dim is a multiple of a vector of T, and at most kLanes of them; all
// rows and heads are aligned to vectors, the codes to as many codes. No more blocks than rows. With codes, the block
// keeps the row in dynamic shared memory: a vector for every thread and round, which only that thread touches.
template <class T, int kLanes, int kMost>
__global__ void __launch_bounds__(kSelfAttentionThreads, resident_attention_blocks<T>(kMost))
    self_attention_kernel(const __grid_constant__ SelfAttentionArguments p) {
  allow_next_kernel();
  if (!p.settled) wait_for_previous_kernel();
  constexpr int kN = kVector<T>;
  const auto heads_at_once = static_cast<std::int32_t>(blockDim.x) / kLanes;
  const auto first_head = static_cast<std::int32_t>(threadIdx.x) / kLanes;
  const std::int32_t column = static_cast<std::int32_t>(threadIdx.x) % kLanes * kN;
  const bool coded = p.quantized.kind != Codes::kNone;
  uint4* const kept = dynamic_shared<uint4>() + threadIdx.x;
  BlockTeam<kSelfAttentionThreads> team;

  auto row = static_cast<std::int32_t>(blockIdx.x);
  const auto turn = static_cast<std::int32_t>(gridDim.x);
  SeenRows<kMost> seen = seen_rows<kMost>(p, row);  // not waiting for the number of live rows
  const std::int32_t live = live_rows(p);
  if (p.settled) wait_for_previous_kernel();
  for (; row < live; row += turn) {
    float largest = 0.0f;
    for (std::int32_t round = 0; round < p.rounds; ++round) {  // the same for the whole block
      const std::int32_t head = round * heads_at_once + first_head;
      const uint4 vector = attend_head<T, kLanes>(p, seen, head, column);
      const bool active = head < p.heads && column < p.head_dim;
      if (coded) {
        float values[kN];
        unpack<T>(vector, values);
        if (active) largest = max_or_nan(largest, magnitude_of(values));
        kept[round * blockDim.x] = vector;
      } else if (active) {
        T* const out = static_cast<T*>(p.out) + static_cast<std::int64_t>(row) * p.out_stride;
        store_vector(out + static_cast<std::int64_t>(head) * p.head_dim + column, vector);
      }
    }
    if (row + turn < live) seen = seen_rows<kMost>(p, row + turn);
    if (!coded) continue;
    const float scale = e4m3_scale(team.max_magnitude(largest));
    const float inverse = e4m3_inverse(scale);
    if (threadIdx.x == 0) p.quantized.scales[row] = scale;
    std::uint8_t* const codes = p.quantized.codes + static_cast<std::int64_t>(row) * p.quantized.stride;
    for (std::int32_t round = 0; round < p.rounds; ++round) {
      const std::int32_t head = round * heads_at_once + first_head;
      if (head >= p.heads || column >= p.head_dim) continue;
      float values[kN];
      unpack<T>(kept[round * blockDim.x], values);
      store_codes(codes + static_cast<std::int64_t>(head) * p.head_dim + column, values, inverse);
    }
  }
}

inline constexpr int kAttentionWarpVectors = 8;  // of a lane
inline constexpr int kAttentionWarpThreads = 256;
inline constexpr int kAttentionWarpBlocks = 2;  // on a multiprocessor

// The parts of its rows that a warp comes to, in order: what its lanes hold of all heads at a time. A lane asks for its
// vectors of a part some parts ahead, also across rows, and finds them in shared memory.
template <class T, int kLanes, int kKeys>
class PartsAhead {
 public:
  static constexpr int kVectors = 1 + 2 * kKeys;     // of a lane and part
  static constexpr int kParts = kKeys == 2 ? 4 : 3;  // in shared memory: one is read, the others are under way
  static constexpr int kBytes = kParts * kVectors * kAttentionWarpThreads * 16;  // of a block

  // Rows `row`, `row` - `turn`, ... down to 0, of which there is one.
  __device__ __forceinline__ PartsAhead(const SelfAttentionArguments& p, std::int32_t row, std::int32_t turn)
      : p_(p),
        vectors_(p.heads * kLanes),
        turn_(turn),
        own_(dynamic_shared<uint4>() + warp_index() * kParts * kVectors * kWarp + lane_index()),
        row_(row) {
    see(seen_rows<kKeys>(p, row));
    look_ahead();
#pragma unroll
    for (int i = 0; i + 1 < kParts; ++i) ask();
  }

  // The next part.
  __device__ __forceinline__ HeadVectors<kKeys> take() {
    wait_for_copies<kParts - 2>();
    const uint4* const from = own_ + taken_ * kVectors * kWarp;
    taken_ = taken_ + 1 == kParts ? 0 : taken_ + 1;
    HeadVectors<kKeys> held;
    held.query = from[0];
#pragma unroll
    for (int s = 0; s < kKeys; ++s) {
      held.key[s] = from[(1 + 2 * s) * kWarp];
      held.value[s] = from[(2 + 2 * s) * kWarp];
    }
    ask();  // in the place of the part that was taken before this one
    return held;
  }

 private:
  __device__ __forceinline__ void see(const SeenRows<kKeys>& seen) {
#pragma unroll
    for (int s = 0; s < kKeys; ++s) tokens_[s] = token_at<T>(p_, s, seen.at[s]);
  }

  // Which rows the next one sees is known by the time that it is asked for.
  __device__ __forceinline__ void look_ahead() {
    if (row_ >= turn_) next_ = seen_rows<kKeys>(p_, row_ - turn_);
  }

  __device__ __forceinline__ void ask() {
    constexpr int kN = kVector<T>;
    if (row_ >= 0) {
      const std::int32_t vector = part_ * kWarp + lane_index();
      if (vector < vectors_) {
        const std::int64_t shared = p_.group == 1 ? static_cast<std::int64_t>(vector) * kN
                                                  : shared_column(p_, vector / kLanes, vector % kLanes * kN);
        uint4* const to = own_ + asked_ * kVectors * kWarp;
        copy_vector_async(to, tokens_[kKeys - 1] + static_cast<std::int64_t>(vector) * kN);
#pragma unroll
        for (int s = 0; s < kKeys; ++s) {
          copy_vector_async(to + (1 + 2 * s) * kWarp, tokens_[s] + p_.key_column + shared);
          copy_vector_async(to + (2 + 2 * s) * kWarp, tokens_[s] + p_.value_column + shared);
        }
      }
      if (++part_ * kWarp >= vectors_) {
        part_ = 0;
        row_ -= turn_;
        see(next_);
        look_ahead();
      }
    }
    asked_ = asked_ + 1 == kParts ? 0 : asked_ + 1;
    close_copies();
  }

  const SelfAttentionArguments& p_;
  const std::int32_t vectors_;
  const std::int32_t turn_;
  uint4* const own_;
  const T* tokens_[kKeys];     // that the row sees
  SeenRows<kKeys> next_ = {};  // by the next row
  std::int32_t row_;           // to be asked for, and its part
  std::int32_t part_ = 0;
  int asked_ = 0;  // places in shared memory
  int taken_ = 0;
};

// For many rows: a warp takes one, part by part, from the last row to the first: what was written last is still in L2.
// kKeys keys; a head is kLanes vectors, kLanes a power of two; all heads are at most kAttentionWarpVectors vectors a
// lane. Aligned as above; PartsAhead::kBytes of dynamic shared memory. The results have the bits of the kernel above.
template <class T, int kLanes, int kKeys>
__global__ void __launch_bounds__(kAttentionWarpThreads, kAttentionWarpBlocks)
    self_attention_warp_kernel(const __grid_constant__ SelfAttentionArguments p) {
  overlap_with_neighbours();
  constexpr int kN = kVector<T>;
  const std::int32_t vectors = p.heads * kLanes;
  const std::int32_t parts = (vectors + kWarp - 1) / kWarp;
  const auto turn = static_cast<std::int32_t>(gridDim.x * blockDim.x) / kWarp;
  auto row = live_rows(p) - 1 - static_cast<std::int32_t>(blockIdx.x * blockDim.x + threadIdx.x) / kWarp;
  if (row < 0) return;
  PartsAhead<T, kLanes, kKeys> ahead(p, row, turn);
  for (; row >= 0; row -= turn) {
    uint4 kept[kAttentionWarpVectors];
    float largest = 0.0f;
#pragma unroll
    for (int part = 0; part < kAttentionWarpVectors; ++part) {
      if (part >= parts) break;
      kept[part] = attend<T, kLanes>(ahead.take(), kKeys, p.scale);
      if (part * kWarp + lane_index() >= vectors) kept[part] = make_uint4(0, 0, 0, 0);
      float values[kN];
      unpack<T>(kept[part], values);
      largest = max_or_nan(largest, magnitude_of(values));
    }
    const bool coded = p.quantized.kind != Codes::kNone;
    const float scale = e4m3_scale(warp_max(largest));
    const float inverse = e4m3_inverse(scale);
    if (coded && lane_index() == 0) p.quantized.scales[row] = scale;
    std::uint8_t* const codes = p.quantized.codes + static_cast<std::int64_t>(row) * p.quantized.stride;
    T* const out = static_cast<T*>(p.out) + static_cast<std::int64_t>(row) * p.out_stride;
#pragma unroll
    for (int part = 0; part < kAttentionWarpVectors; ++part) {
      const std::int32_t vector = part * kWarp + lane_index();
      if (vector >= vectors) break;
      if (coded) {
        float values[kN];
        unpack<T>(kept[part], values);
        store_codes(codes + static_cast<std::int64_t>(vector) * kN, values, inverse);
      } else {
        store_vector(out + static_cast<std::int64_t>(vector) * kN, kept[part]);
      }
    }
  }
}

// Any width and alignment: a block takes a row, first a warp a head for the softmax, whose weights go to dynamic shared
// memory: kMaxKeys floats for every head. Then its threads take the columns.
template <class T>
__global__ void __launch_bounds__(256) self_attention_plain_kernel(const __grid_constant__ SelfAttentionArguments p) {
  overlap_with_neighbours();
  float* const weights = dynamic_shared<float>();
  const std::int32_t live = live_rows(p);
  for (auto row = static_cast<std::int32_t>(blockIdx.x); row < live; row += static_cast<std::int32_t>(gridDim.x)) {
    __syncthreads();  // the row before is done with `weights`
    for (std::int32_t head = warp_index(); head < p.heads; head += static_cast<int>(blockDim.x) / kWarp) {
      const T* const query = token_at<T>(p, p.keys - 1, row) + static_cast<std::int64_t>(head) * p.head_dim;
      const std::int64_t shared = static_cast<std::int64_t>(head / p.group) * p.head_dim;
      float score = -INFINITY;  // lane s has that of key s
      for (int s = 0; s < p.keys; ++s) {
        const T* const key = token_at<T>(p, s, seen_row(p, s, row)) + p.key_column + shared;
        float dot = 0.0f;
        for (int d = lane_index(); d < p.head_dim; d += kWarp) dot += to_float(query[d]) * to_float(key[d]);
        dot = warp_sum(dot);
        if (lane_index() == s) score = p.scale * dot;
      }
      const float numerator = expf(score - warp_max(score));
      const float inverse = 1.0f / warp_sum(numerator);
      if (lane_index() < p.keys) weights[head * kMaxKeys + lane_index()] = numerator * inverse;
    }
    __syncthreads();
    const auto value_of = [&](std::int64_t c) {
      const std::int64_t head = c / p.head_dim;
      const std::int64_t column = p.value_column + head / p.group * p.head_dim + c % p.head_dim;
      float sum = 0.0f;
      for (int s = 0; s < p.keys; ++s) {
        sum += weights[head * kMaxKeys + s] * to_float(token_at<T>(p, s, seen_row(p, s, row))[column]);
      }
      return from_float<T>(sum);
    };
    const std::int64_t width = static_cast<std::int64_t>(p.heads) * p.head_dim;
    if (p.quantized.kind != Codes::kNone) {
      quantize_row_plain(p.quantized, row, width, [&](std::int64_t c) { return to_float(value_of(c)); });
      continue;
    }
    T* const out = static_cast<T*>(p.out) + static_cast<std::int64_t>(row) * p.out_stride;
    for (std::int64_t c = threadIdx.x; c < width; c += blockDim.x) out[c] = value_of(c);
  }
}

}  // namespace onerec::cuda::kernels
