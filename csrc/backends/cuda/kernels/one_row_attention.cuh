// Cross-attention of requests that have one row each, on the ordinary cores: a query reads a key for a handful of
// products, so memory sets the pace. The blocks of a cluster take parts of one head's context side by side, and the
// first of them adds up what the others leave in its shared memory.
#pragma once

#include "backends/cuda/kernels/async_copy.cuh"
#include "backends/cuda/kernels/attention_layout.cuh"
#include "backends/cuda/kernels/attention_tensors.cuh"
#include "backends/cuda/kernels/block.cuh"
#include "backends/cuda/kernels/block_cluster.cuh"
#include "backends/cuda/kernels/grid_dependency.cuh"

namespace onerec::cuda::kernels {

inline constexpr int kOneRowWarps = 8;
inline constexpr int kOneRowThreads = kOneRowWarps * kWarp;
inline constexpr int kOneRowBlocks = 3;         // that a multiprocessor holds
inline constexpr int kOneRowStages = 4;         // batches of tokens that are under way
inline constexpr int kOneRowVectors = 4;        // of a thread and batch
inline constexpr int kMostContextSplits = 8;    // blocks of a cluster on every device that has clusters
inline constexpr float kNumeratorSlack = 5.5f;  // e^5.5 < 2^8: see RowSums

// Every pointer, and every row, is aligned to 16 bytes; a request has at most one row.
struct OneRowArguments : AttentionTensors<bf16> {
  StaticCodes codes = {};
  std::uint64_t group_reciprocal = 0;  // head_reciprocal() of the heads that share keys and values
  int splits = 1;                      // parts of a context: as many as blocks, if those have a cluster
  float scale = 0.0f;
  std::int64_t prefetch_pieces = 0;  // of k and v, by capacity: to be asked for before the kernel waits
  int prefetch_tokens = 1;           // of a piece
  std::uint32_t prefetch_bytes = 0;  // of a piece of each of them
};

// index * head_reciprocal(divisor) >> 32 is index / divisor, both below 2^16.
constexpr std::uint64_t head_reciprocal(std::uint32_t divisor) { return (std::uint64_t{1} << 32) / divisor + 1; }

// How a block shares out its tokens: kLanes lanes hold a vector each of a token, a warp takes kSides tokens at a time,
// and a lane has kTurns tokens of a batch.
template <int kHeadDim, ContextTensors kContext>
struct OneRowTile {
  static constexpr bool kShared = kContext == ContextTensors::kShared;
  static constexpr int kLanes = kHeadDim / kVector<bf16>;
  static constexpr int kSides = kWarp / kLanes;
  static constexpr int kTurns = kShared ? kOneRowVectors : kOneRowVectors / 2;
  static constexpr int kStep = kOneRowWarps * kSides;  // tokens from one turn to the next
  static constexpr int kTokens = kStep * kTurns;       // of a batch
  static constexpr int kCopies = kLanes / kTurns;      // lanes that get the score of the same token
  static constexpr int kSharedBytes = kOneRowStages * kOneRowVectors * kOneRowThreads * 16;
  static_assert(kWarp % kLanes == 0 && kLanes % kTurns == 0, "heads of 64 and 128 columns");
};

// Makes the compiler compute the pointer to global memory here, not where it is first needed.
template <class T>
__device__ __forceinline__ void compute_here(T*& pointer) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+l"(pointer));
#else
  (void)pointer;
#endif
}

// This thread's vectors of some tokens of a request, on their way through shared memory that is its own. Batches are
// brought, and taken, one after the other.
template <class Tile>
class ContextStream {
 public:
  // At this column of every token.
  __device__ __forceinline__ ContextStream(const OneRowArguments& args, int column)
      : mine_(warp_index() * Tile::kSides + lane_index() / Tile::kLanes),
        first_key_(args.k + mine_ * args.k_stride + column),
        first_value_(args.v + mine_ * args.v_stride + column),
        slots_(dynamic_shared<uint4>() + threadIdx.x) {
    compute_here(first_key_);
    if constexpr (!Tile::kShared) compute_here(first_value_);
  }

  // `tokens` tokens from `first` on, whose first batches are brought. What was started before has been taken.
  __device__ __forceinline__ void start(const OneRowArguments& args, std::int64_t first, int tokens) {
    keys_ = first_key_ + first * args.k_stride;
    values_ = first_value_ + first * args.v_stride;
    key_step_ = Tile::kStep * args.k_stride;
    value_step_ = Tile::kStep * args.v_stride;
    tokens_ = tokens;
#pragma unroll
    for (int batch = 0; batch < kOneRowStages; ++batch) bring(batch);
  }

  __device__ __forceinline__ bool has(int batch) const { return batch * Tile::kTokens < tokens_; }
  __device__ __forceinline__ bool has_token(int batch, int turn) const {
    return batch * Tile::kTokens + turn * Tile::kStep + mine_ < tokens_;
  }

  // What lies behind the last token arrives as 0.
  __device__ __forceinline__ void bring(int batch) {
    if (has(batch)) {
#pragma unroll
      for (int turn = 0; turn < Tile::kTurns; ++turn) {
        const bool live = has_token(batch, turn);
        copy_vector_or_zero_async(slot(batch, turn), keys_, live);
        keys_ += key_step_;
        if constexpr (!Tile::kShared) {
          copy_vector_or_zero_async(slot(batch, Tile::kTurns + turn), values_, live);
          values_ += value_step_;
        }
      }
    }
    close_copies();
  }

  // A batch that has arrived. The values are the keys where there are no others.
  __device__ __forceinline__ void take(int batch, uint4 (&keys)[Tile::kTurns], uint4 (&values)[Tile::kTurns]) const {
#pragma unroll
    for (int turn = 0; turn < Tile::kTurns; ++turn) {
      keys[turn] = *slot(batch, turn);
      values[turn] = Tile::kShared ? keys[turn] : *slot(batch, Tile::kTurns + turn);
    }
  }

 private:
  __device__ __forceinline__ uint4* slot(int batch, int vector) const {
    return slots_ + (batch % kOneRowStages * kOneRowVectors + vector) * kOneRowThreads;
  }

  int mine_;               // this thread's token of the first turn
  const bf16* first_key_;  // its vector, of all tokens'
  const bf16* first_value_;
  uint4* slots_;
  const bf16* keys_ = nullptr;  // of the next turn to be brought
  const bf16* values_ = nullptr;
  std::int64_t key_step_ = 0;
  std::int64_t value_step_ = 0;
  int tokens_ = 0;
};

// -inf - -inf is not 0.
__device__ __forceinline__ float subtracted(float base) { return base == -INFINITY ? 0.0f : base; }

// What a warp has summed. Numerators are exp(score - base), the base being a score that lies at most kNumeratorSlack
// below the largest so far: only where a score goes beyond that do the lanes look for the largest.
struct RowSums {
  float base = -INFINITY;  // of the warp
  float total = 0.0f;      // of this lane's scores
  float sums[kVector<bf16>] = {};

  __device__ __forceinline__ void raise_base(float score) {
    if (__any_sync(kAllLanes, !(score <= base + kNumeratorSlack)) == 0) return;
    const float largest = max_or_nan(base, warp_max(score));
    const float shrink = expf(base - subtracted(largest));
    base = largest;
    total *= shrink;
#pragma unroll
    for (float& sum : sums) sum *= shrink;
  }
};

__device__ __forceinline__ float dot(const float (&q)[kVector<bf16>], uint4 vector) {
  float k[kVector<bf16>];
  unpack<bf16>(vector, k);
  float sum = 0.0f;
#pragma unroll
  for (int j = 0; j < kVector<bf16>; ++j) sum = fmaf(q[j], k[j], sum);
  return sum;
}

// All tokens of the stream, whose first batches are under way. The lanes' sums are of different tokens.
template <class Tile>
__device__ __forceinline__ RowSums attend(ContextStream<Tile>& context, const float (&q)[kVector<bf16>], float scale) {
  const int lane = lane_index();
  RowSums row;
  for (int batch = 0; context.has(batch); ++batch) {
    wait_for_copies<kOneRowStages - 1>();
    uint4 keys[Tile::kTurns];
    uint4 values[Tile::kTurns];
    context.take(batch, keys, values);
    float scores[Tile::kTurns];
#pragma unroll
    for (int turn = 0; turn < Tile::kTurns; ++turn) scores[turn] = dot(q, keys[turn]);
    float score = scale * scattered_warp_sum<Tile::kTurns, Tile::kLanes / 2>(scores);
    if (!context.has_token(batch, lane % Tile::kLanes / Tile::kCopies)) score = -INFINITY;
    row.raise_base(score);
    const float numerator = expf(score - subtracted(row.base));
    row.total += numerator;
    const float rounded = to_float(from_float<bf16>(numerator));
#pragma unroll
    for (int turn = 0; turn < Tile::kTurns; ++turn) {
      const float weight = __shfl_sync(kAllLanes, rounded, lane / Tile::kLanes * Tile::kLanes + turn * Tile::kCopies);
      float v[kVector<bf16>];
      unpack<bf16>(values[turn], v);
#pragma unroll
      for (int j = 0; j < kVector<bf16>; ++j) row.sums[j] = fmaf(weight, v[j], row.sums[j]);
    }
    context.bring(batch + kOneRowStages);
  }
  return row;
}

// Sums over parts of a context, each relative to its own base.
template <int kParts, int kHeadDim>
struct SummedParts {
  float sums[kParts][kHeadDim];
  float totals[kParts];
  float bases[kParts];
};

struct SummedColumn {
  float sum = 0.0f;
  float total = 0.0f;
  float base = -INFINITY;
};

// One column of the first `count` parts.
template <int kParts, int kHeadDim>
__device__ __forceinline__ SummedColumn add_parts(const SummedParts<kParts, kHeadDim>& parts, int count, int column) {
  SummedColumn all;
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    if (i < count) all.base = max_or_nan(all.base, parts.bases[i]);
  }
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    if (i >= count) continue;
    const float weight = expf(parts.bases[i] - subtracted(all.base));
    all.total = fmaf(weight, parts.totals[i], all.total);
    all.sum = fmaf(weight, parts.sums[i][column], all.sum);
  }
  return all;
}

// Leaves what this warp has summed as part `warp`.
template <class Tile, int kHeadDim>
__device__ __forceinline__ void leave_part(RowSums& row, SummedParts<kOneRowWarps, kHeadDim>& parts) {
  const int lane = lane_index();
  const int warp = warp_index();
#pragma unroll
  for (int step = kWarp / 2; step >= Tile::kLanes; step /= 2) {
#pragma unroll
    for (float& sum : row.sums) sum += __shfl_xor_sync(kAllLanes, sum, step);
  }
  const float total = warp_sum(row.total) * (1.0f / Tile::kCopies);
  if (lane < Tile::kLanes) {
    auto* const to = reinterpret_cast<float4*>(parts.sums[warp] + lane * kVector<bf16>);
    to[0] = make_float4(row.sums[0], row.sums[1], row.sums[2], row.sums[3]);
    to[1] = make_float4(row.sums[4], row.sums[5], row.sums[6], row.sums[7]);
  }
  if (lane == 0) {
    parts.totals[warp] = total;
    parts.bases[warp] = row.base;
  }
}

// Asks for this block's share of all tokens, for L2: where few requests are run, memory is idle while the kernel before
// this one ends. What is asked for need not have been written yet.
template <class Tile>
__device__ __forceinline__ void prefetch_context(const OneRowArguments& args) {
  const std::int64_t blocks = static_cast<std::int64_t>(gridDim.x) * gridDim.y * gridDim.z;
  const std::int64_t block = (static_cast<std::int64_t>(blockIdx.z) * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  // A warp's lanes take turns at asking: neighbours in this order are in different warps.
  const int thread = lane_index() * kOneRowWarps + warp_index();
  for (std::int64_t piece = block + thread * blocks; piece < args.prefetch_pieces; piece += blocks * kOneRowThreads) {
    const std::int64_t token = piece * args.prefetch_tokens;
    prefetch_to_l2(args.k + token * args.k_stride, args.prefetch_bytes);
    if constexpr (!Tile::kShared) prefetch_to_l2(args.v + token * args.v_stride, args.prefetch_bytes);
  }
}

// Grid: kCluster blocks, heads, requests. The blocks of a cluster take a split each; a block without a cluster takes
// all splits in turn. Dynamic shared memory: Tile::kSharedBytes.
template <int kHeadDim, ContextTensors kContext, int kCluster>
__global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kOneRowThreads, kOneRowBlocks)
    one_row_attention(const OneRowArguments args) {
  using Tile = OneRowTile<kHeadDim, kContext>;
  alignas(16) __shared__ SummedParts<kOneRowWarps, kHeadDim> warp_parts;
  alignas(16) __shared__ SummedParts<kMostContextSplits, kHeadDim> split_parts;  // of the first block
  alignas(8) __shared__ std::uint64_t mail;
  const int column = static_cast<int>(threadIdx.x);
  const int splits = kCluster > 1 ? kCluster : args.splits;
  if constexpr (kCluster > 1) {
    if (column == 0 && blockIdx.x == 0) expect_mail(&mail, kCluster * (kHeadDim + 2) * static_cast<int>(sizeof(float)));
    come_to_cluster_barrier();
  }
  prefetch_context<Tile>(args);
  const int request = static_cast<int>(blockIdx.z);
  const int lane_column = lane_index() % Tile::kLanes * kVector<bf16>;
  const int first_column = static_cast<int>(blockIdx.y) * kHeadDim;  // of q and out
  const auto group = static_cast<int>(blockIdx.y * args.group_reciprocal >> 32);
  ContextStream<Tile> context(args, group * kHeadDim + lane_column);
  overlap_with_neighbours();
  const std::int64_t row = args.row_offsets[request];
  const bool live = args.row_offsets[request + 1] > row;
  const std::int64_t first_token = args.context_offsets[request];
  const int tokens = static_cast<int>(args.context_offsets[request + 1] - first_token);
  if constexpr (kCluster > 1) wait_at_cluster_barrier();
  if (!live) return;  // the whole cluster

  const int split_tokens = (tokens + splits - 1) / splits;
  for (int split = static_cast<int>(blockIdx.x); split < splits; split += kCluster) {
    const int begin = min(split * split_tokens, tokens);
    context.start(args, first_token + begin, min(split_tokens, tokens - begin));
    float q[kVector<bf16>];
    unpack<bf16>(load_vector(args.q + row * args.q_stride + first_column + lane_column), q);
    RowSums sums = attend<Tile>(context, q, args.scale);
    if (split >= kCluster) __syncthreads();  // the last split's parts have been read
    leave_part<Tile>(sums, warp_parts);
    __syncthreads();
    if (column < kHeadDim) {
      const SummedColumn part = add_parts(warp_parts, kOneRowWarps, column);
      const auto leave = [&](float& place, float value) {
        if constexpr (kCluster > 1) {
          send_to_first_block(&place, value, &mail);
        } else {
          place = value;
        }
      };
      leave(split_parts.sums[split][column], part.sum);
      if (column == 0) {
        leave(split_parts.totals[split], part.total);
        leave(split_parts.bases[split], part.base);
      }
    }
  }
  if (blockIdx.x != 0) return;
  if constexpr (kCluster > 1) {
    wait_for_mail(&mail);
  } else {
    __syncthreads();
  }
  if (column < kHeadDim) {
    const SummedColumn all = add_parts(split_parts, splits, column);
    const bf16 value = from_float<bf16>(tokens == 0 ? 0.0f : all.sum * approximate_inverse(all.total));
    const std::int64_t at = first_column + column;
    if (args.codes.codes == nullptr) {
      args.out[row * args.out_stride + at] = value;
    } else {
      args.codes.codes[row * args.codes.stride + at] = to_e4m3(to_float(value) * args.codes.inverse);
      if (at == 0) args.codes.scales[row] = args.codes.scale;
    }
  }
}

}  // namespace onerec::cuda::kernels
