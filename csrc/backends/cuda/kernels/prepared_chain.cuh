// Several prepared linears (prepared_linear.cuh) as one kernel, for few rows: the blocks stay, and meet at a barrier of
// the grid between a product and the next one, which reads it. What a kernel of its own would cost is its start, and
// the memory that has nothing to do until its input has been made. Here every warp brings its weights through all links
// in one stream: those of the links to come are on their way while the block waits. x, the sums and y are those of the
// separate kernels, bit for bit.
#pragma once

#include "backends/cuda/kernels/grid_barrier.cuh"
#include "backends/cuda/kernels/prepared_linear.cuh"

namespace onerec::cuda::kernels {

inline constexpr int kMostLinks = 8;

struct ChainLink {
  SmallLinearParams product;  // as for prepared_linear_kernel; kCopy without codes copies what x is
  RowSource from;
  RowMaker maker = RowMaker::kCopy;
  int log_parts = 0;  // of product.split
};

// All links have the same rows. None writes what it reads, but for the residual; what others wrote is read behind the
// barrier.
struct PreparedChain {
  ChainLink links[kMostLinks];
  int count = 0;
  std::uint32_t* barrier = nullptr;  // see GridBarrier
};

// One block of a multiprocessor has all of its threads and memory: fewer blocks meet sooner, and each makes its rows
// once for all outputs of the multiprocessor. A release waits for what its thread has under way, so the thread that
// arrives at the barrier, the block's last one, is in a warp that brings no weights; the sums of several rows leave no
// registers for such a warp.
inline constexpr int kChainThreads = 512;  // that bring weights, and make rows
inline constexpr int kChainWarps = kChainThreads / kWarp;
template <int kRows>
inline constexpr int kChainBlock = kRows == 1 ? kChainThreads + kWarp : kChainThreads;
inline constexpr int kMostParts = 8;  // SmallLinearParams::split
// Vectors of a lane and output that are under way: 128 KiB of a multiprocessor. What memory brings in 3 us, longer than
// a barrier and the making of a row.
inline constexpr int kChainAhead = 8;

constexpr std::int64_t prepared_chain_slots() { return kChainAhead * kSmallLinearOutputs * kChainThreads; }

// `inputs`: the most that a link has.
__host__ __device__ constexpr std::int64_t prepared_chain_bytes(std::int64_t inputs, std::int64_t value_bytes,
                                                                int rows) {
  return prepared_chain_slots() * static_cast<std::int64_t>(sizeof(uint4)) + rows * inputs * value_bytes;
}

// The most outputs of a block, of which the grid has `blocks`.
constexpr std::int64_t chain_block_outputs(std::int64_t outputs, std::int64_t blocks) {
  const std::int64_t teams = (outputs + kSmallLinearOutputs - 1) / kSmallLinearOutputs;
  return (teams + blocks - 1) / blocks * kSmallLinearOutputs;
}

// As in OutputShare, 2^log_parts warps are a team that shares the K of kSmallLinearOutputs outputs: turn t of a warp
// has its lanes' vectors first_vector() + lane + t * (kWarp << log_parts).
__device__ __forceinline__ int first_vector(int log_parts) { return (warp_index() & ((1 << log_parts) - 1)) * kWarp; }

// Turns of a warp with so many vectors from its first one on.
__device__ __forceinline__ int turns_of(int vectors, int log_parts) {
  static_assert(kWarp == 1 << 5, "a shift instead of a division");
  const int step = kWarp << log_parts;
  return vectors > 0 ? (vectors + step - 1) >> (log_parts + 5) : 0;
}

// What a block has of a link's groups of kSmallLinearOutputs outputs, and which of them this warp takes: first,
// first + teams, first + 2 * teams, ... below `end`.
struct ChainShare {
  int begin;
  int end;
  int first;

  __device__ __forceinline__ explicit ChainShare(const ChainLink& link) {
    const auto outputs = static_cast<unsigned>(link.product.outputs);
    const unsigned groups = (outputs + kSmallLinearOutputs - 1) / kSmallLinearOutputs;
    begin = static_cast<int>(groups * blockIdx.x / gridDim.x);
    end = static_cast<int>(groups * (blockIdx.x + 1) / gridDim.x);
    first = warp_index() < kChainWarps ? begin + (warp_index() >> link.log_parts) : end;
  }
};

// This lane's vectors of all its groups of all links, in order, on their way through shared memory.
template <WeightKind kKind>
class ChainStream {
 public:
  using Traits = WeightTraits<kKind>;
  using Value = typename Traits::Value;
  static constexpr int kOutputs = kSmallLinearOutputs;

  // `slots`: prepared_chain_slots() vectors of shared memory, of the whole block. The first turns are brought.
  __device__ __forceinline__ ChainStream(const PreparedChain& chain, uint4* slots)
      : chain_(chain), slots_(slots + threadIdx.x) {
    if (warp_index() >= kChainWarps) link_ = chain.count;
#pragma unroll 1
    for (int turn = 0; turn < kChainAhead; ++turn) bring();
  }

  // The next turn, which is there: calls visit(vectors) if this lane has a part in it, and brings a new one.
  template <class Visit>
  __device__ __forceinline__ void take(bool present, const Visit& visit) {
    wait_for_copies<kChainAhead - 1>();
    if (present) {
      uint4 vectors[kOutputs];
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) vectors[o] = *slot(o);
      visit(vectors);
    }
    bring();
  }

  // For SmallLinearSums; no weights with scales of blocks come this way.
  __device__ __forceinline__ static float block_scale(std::int64_t) { return 1.0f; }

 private:
  static_assert(kOutputs == 2, "a row, and the last row");

  __device__ __forceinline__ uint4* slot(int output) const {
    return slots_ + (slot_ * kOutputs + output) * kChainThreads;
  }

  // A turn of the warp. Every call is a group of copies, if only an empty one behind the last turn.
  __device__ __forceinline__ void bring() {
    while (turns_ == 0 && link_ < chain_.count) find_group();
    if (turns_ > 0) {
      if (vector_ < vectors_) {
        const Value* const from = row_ + vector_ * Traits::kVector;
        copy_vector_async(slot(0), from);
        copy_vector_async(slot(1), from + last_row_);
      }
      vector_ += kWarp << log_parts_;
      --turns_;
    }
    close_copies();
    slot_ = slot_ + 1 == kChainAhead ? 0 : slot_ + 1;
  }

  // The next group of this link, or the first one of the next link, which may have none for this warp.
  __device__ __forceinline__ void find_group() {
    group_ += kChainWarps >> log_parts_;
    if (group_ >= end_) {
      if (++link_ >= chain_.count) return;
      const ChainShare share(chain_.links[link_]);
      log_parts_ = chain_.links[link_].log_parts;
      group_ = share.first;
      end_ = share.end;
      vectors_ = static_cast<int>(chain_.links[link_].product.inputs) / Traits::kVector;
      if (group_ >= end_) return;
    }
    const SmallLinearParams& p = chain_.links[link_].product;
    const std::int64_t output = std::int64_t{group_} * kOutputs;
    row_ = static_cast<const Value*>(p.weights) + output * p.inputs;
    // Past the last output: that one again, for nobody.
    last_row_ = output + 1 < p.outputs ? static_cast<int>(p.inputs) : 0;
    const int before = first_vector(log_parts_);
    vector_ = before + lane_index();
    turns_ = turns_of(vectors_ - before, log_parts_);
  }

  const PreparedChain& chain_;
  uint4* slots_;
  int slot_ = 0;  // of the next turn, to take and then to bring
  // What is brought next.
  int link_ = -1;
  int end_ = 0;  // of the share of the link
  int log_parts_ = 0;
  int group_ = 0;
  int turns_ = 0;  // left of the group
  int vector_ = 0;
  int vectors_ = 0;  // of a row
  const Value* row_ = nullptr;
  int last_row_ = 0;  // elements behind row_
};

// The threads of a block as they make a row. As for BlockTeam, all of them call its collectives in the same order.
class ChainTeam {
 public:
  // The bits are those of a BlockTeam<kSmallLinearThreads>, whose threads are the only ones with values.
  __device__ __forceinline__ float sum(float value) {
    const float* const now = share(warp_sum(value));
    value = now[0];
#pragma unroll
    for (int w = 1; w < kSmallLinearWarps; ++w) value += now[w];
    return value;
  }
  __device__ __forceinline__ float max_magnitude(float value) {
    return warp_max<kChainWarps>(share(warp_max(value))[lane_index() % kChainWarps]);
  }

 private:
  // One barrier: two calls in a row use different arrays, and the third comes behind the second's barrier.
  __device__ __forceinline__ const float* share(float value) {
    __shared__ float parts[2][kChainWarps];
    float* const now = parts[turn_];
    turn_ ^= 1;
    if (lane_index() == 0 && warp_index() < kChainWarps) now[warp_index()] = value;
    __syncthreads();
    return now;
  }

  int turn_ = 0;
};

// Asks for what the stream does not hold of the block's weights, for L2: they lie in one piece. A warp calls it.
template <WeightKind kKind>
__device__ __forceinline__ void prefetch_share(const ChainLink& link) {
  using Value = typename WeightTraits<kKind>::Value;
  constexpr std::int64_t kPiece = 4096;
  constexpr std::int64_t kHeld = prepared_chain_slots() * static_cast<std::int64_t>(sizeof(uint4));
  const SmallLinearParams& p = link.product;
  const ChainShare share(link);
  const std::int64_t row = p.inputs * static_cast<std::int64_t>(sizeof(Value));
  const std::int64_t last = std::int64_t{share.end} * kSmallLinearOutputs;
  const std::int64_t end = (last < p.outputs ? last : p.outputs) * row;
  std::int64_t at = std::int64_t{share.begin} * kSmallLinearOutputs * row + kHeld + lane_index() * kPiece;
  for (; at < end; at += kWarp * kPiece) {
    const std::int64_t left = end - at;
    prefetch_to_l2(static_cast<const std::uint8_t*>(p.weights) + at,
                   static_cast<std::uint32_t>(left < kPiece ? left : kPiece));
  }
}

// Calls f(std::integral_constant) with the maker.
template <class F>
__device__ __forceinline__ void with_maker(RowMaker maker, const F& f) {
  if (maker == RowMaker::kNorm) return f(std::integral_constant<RowMaker, RowMaker::kNorm>{});
  if (maker == RowMaker::kSwiglu) return f(std::integral_constant<RowMaker, RowMaker::kSwiglu>{});
  f(std::integral_constant<RowMaker, RowMaker::kCopy>{});
}

// y of BF16. Links as for prepared_linear_kernel<kKind, bf16, kRows, bf16, ...>, whose kNorm has as many members and
// the others kChainThreads of them; chain_block_outputs() times kRows is at most kChainThreads. A cooperative launch of
// at most as many blocks as are resident. Dynamic shared memory: prepared_chain_bytes().
template <WeightKind kKind, int kRows>
__global__ void __launch_bounds__(kChainBlock<kRows>, 1)
    prepared_chain_kernel(const __grid_constant__ PreparedChain chain) {
  using Value = typename WeightTraits<kKind>::Value;
  using Y = bf16;
  constexpr int kSums = kRows * kSmallLinearOutputs;
  static_assert(kKind == WeightKind::kFp8Channel || kKind == WeightKind::kBf16, "rows are BF16");
  __shared__ float parts[kMostParts * kChainThreads];  // [group][part of K][row][output]
  __shared__ float scales[kRows];
  auto* const slots = dynamic_shared<uint4>();
  auto* const x = reinterpret_cast<Value*>(slots + prepared_chain_slots());
  ChainStream<kKind> weights(chain, slots);
  const bool asks = warp_index() == kChainBlock<kRows> / kWarp - 1;  // the warp that has the least to do
  if (asks) prefetch_share<kKind>(chain.links[0]);
  GridBarrier barrier(chain.barrier, kChainBlock<kRows> - 1);
  int live = 0;
  ChainTeam team;
#pragma unroll 1
  for (int l = 0; l < chain.count; ++l) {
    SmallLinearParams p = chain.links[l].product;
    p.offsets = nullptr;  // known to the compiler
    const RowSource& from = chain.links[l].from;
    const int log_parts = chain.links[l].log_parts;
    const ChainShare share(chain.links[l]);
    // What is constant is read ahead of the barrier.
    const int column = static_cast<int>(threadIdx.x) / kRows;
    const bool within = column < (share.end - share.begin) * kSmallLinearOutputs;
    const OutputPlace<kKind, Y> place(p, static_cast<int>(threadIdx.x) % kRows, column,
                                      within ? std::int64_t{share.begin} * kSmallLinearOutputs + column : p.outputs);
    with_maker(chain.links[l].maker, [&](auto maker) {
      MadeRow<bf16, maker.value, kChainThreads, ChainTeam> made(from, p.inputs);
      if (l == 0) {
        overlap_with_neighbours();
        barrier.begin();
      } else {
        barrier.wait();
      }
      auto held = made.load(from, 0);  // beside the number of rows
      if (l == 0) live = find_chunk<kRows>(p, 0).count;
      if (live == 0 || share.begin == share.end) return;  // the same for all threads
      const int rows = kRows == 1 ? 1 : live;
#pragma unroll 1
      for (int r = 0; r < rows; ++r) {
        made.make(held, from, team);
        if (r + 1 < rows) held = made.load(from, r + 1);
        made.store(x + r * p.inputs, scales + r, team);
      }
    });
    if (live == 0) break;  // the same for all blocks
    __syncthreads();
    const RowChunk chunk{.begin = 0, .count = kRows == 1 ? 1 : live, .expert = 0};
    p.x = x;
    p.x_stride = p.inputs;
    p.x_scales = scales;
    const bool finishes = place.is_of(p, chunk);
    float x_scale = 1.0f;
    float residual = 0.0f;
    if (finishes) {
      if constexpr (kKind == WeightKind::kFp8Channel) x_scale = scales[place.row];
      if (p.residual != nullptr) residual = place.residual(p, place.row);
    }
    const int vectors = static_cast<int>(p.inputs) / WeightTraits<kKind>::kVector;
    const int before = first_vector(log_parts);
    const int turns = turns_of(vectors - before, log_parts);
#pragma unroll 1
    for (int group = share.first; group < share.end; group += kChainWarps >> log_parts) {
      SmallLinearSums<kKind, kRows> sums(p, chunk);
      int vector = before + lane_index();
#pragma unroll 1
      for (int turn = 0; turn < turns; ++turn, vector += kWarp << log_parts) {
        weights.take(vector < vectors, [&](const uint4(&taken)[kSmallLinearOutputs]) {
          sums.add_vector(weights, taken, vector * WeightTraits<kKind>::kVector);
        });
      }
      const float sum = scattered_warp_sum(sums.sums);
      const int lane = lane_index();
      if (lane % (kWarp / kSums) == 0) {
        const int at = ((group - share.begin) << log_parts) + before / kWarp;
        parts[at * kSums + lane / (kWarp / kSums)] = sum;
      }
    }
    const bool last = l + 1 == chain.count;
    if (asks && !last) prefetch_share<kKind>(chain.links[l + 1]);
    __syncthreads();
    if (finishes) {
      const float* const own = parts + place.column / kSmallLinearOutputs * p.split * kSums +
                               place.row * kSmallLinearOutputs + place.column % kSmallLinearOutputs;
      float sum = 0.0f;
      for (int s = 0; s < p.split; ++s) sum += own[s * kSums];
      place.store(p, place.row, sum, x_scale, residual);
    }
    if (!last) barrier.arrive();
  }
  wait_for_copies<0>();
}

}  // namespace onerec::cuda::kernels
