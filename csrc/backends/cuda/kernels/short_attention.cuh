// Cross-attention on tensor cores (sm_90a) for contexts of at most kFewTiles tiles of keys that are the values, where a
// block has 64 queries: all of the context is in its shared memory at once. The two warpgroups have the same queries
// and every other tile; then each gets the other's sums of half of the columns, adds them to its own, and stores these.
//
// A launch takes a few microseconds, in which every instruction is new to the multiprocessor, so that what is done for
// several items one behind the other in flash_attention.cuh is left out: no ring, no thread that runs ahead, no first
// or last tile that differs from the others.
#pragma once

#include "backends/cuda/kernels/attention_products.cuh"
#include "backends/cuda/kernels/flash_attention_output.cuh"
#include "backends/cuda/kernels/grid_dependency.cuh"

namespace onerec::cuda::kernels {

template <int kHeadDim_>
struct ShortAttentionConfig {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kTokens = tokens_of_tile(kHeadDim, true);
  static constexpr int kStages = static_cast<int>(kFewTiles);
  static constexpr int kPanels = kHeadDim / kPanelColumns;
  static constexpr int kThreads = kFlashWarpgroups * kWarpgroup;

  // Of a warpgroup: the columns that it finishes, and a thread's sums of them.
  static constexpr int kOwnColumns = kHeadDim / kFlashWarpgroups;
  static constexpr int kOwnSums = kHeadDim / 2 / kFlashWarpgroups;

  static constexpr int kQueryBytes = kWarpgroupRows * kHeadDim * 2;
  static constexpr int kTileBytes = kTokens * kHeadDim * 2;
  static constexpr int kTileOffset = kQueryBytes;
  static constexpr int kBarrierOffset = kTileOffset + kStages * kTileBytes;
  static constexpr int kSharedBytes = kBarrierOffset + (1 + kStages) * 8;

  // What a warpgroup sends lies in the place of its first tile, in units: the sums, and what they are relative to.
  static constexpr int kUnits = kOwnSums / kUnitSums;
  static_assert((kUnits + 1) * kUnitBytes <= kTileBytes, "a tile has room for what is sent");
};

template <class Config>
class ShortAttentionMemory {
 public:
  __device__ explicit ShortAttentionMemory(unsigned char* shared) : shared_(shared) {}

  __device__ unsigned char* queries() const { return shared_; }
  __device__ unsigned char* tile(int index) const { return shared_ + Config::kTileOffset + index * Config::kTileBytes; }
  __device__ float4* unit(int warpgroup, int index) const {
    return reinterpret_cast<float4*>(tile(warpgroup) + index * kUnitBytes);
  }
  __device__ std::uint64_t* queries_filled() const {
    return reinterpret_cast<std::uint64_t*>(shared_ + Config::kBarrierOffset);
  }
  __device__ std::uint64_t* filled(int index) const { return queries_filled() + 1 + index; }

 private:
  unsigned char* shared_;
};

// The queries of a block and the context of their request.
struct ShortAttentionItem {
  WarpgroupQueries queries;
  int first_token;
  int tokens;
  int group;
};

__device__ __forceinline__ ShortAttentionItem short_attention_item(const FlashAttentionArguments& args) {
  const std::int32_t* const rows = args.row_offsets + blockIdx.z;
  const std::int32_t* const tokens = args.context_offsets + blockIdx.z;
  const int first_row = rows[0] + static_cast<int>(blockIdx.x) * args.schedule.warpgroup_rows;
  const int live = min(rows[1] - first_row, args.schedule.warpgroup_rows);
  const int group = static_cast<int>(blockIdx.y);
  return {{first_row, group * args.group_heads, live * args.group_heads}, tokens[0], tokens[1] - tokens[0], group};
}

// One thread.
template <class Config>
__device__ __forceinline__ void copy_context(const ShortAttentionMemory<Config>& memory, const CUtensorMap* keys,
                                             const ShortAttentionItem& item) {
#pragma unroll 1
  for (int tile = 0; tile * Config::kTokens < item.tokens; ++tile) {
    arrive_expecting(memory.filled(tile), Config::kTileBytes);
#pragma unroll
    for (int panel = 0; panel < Config::kPanels; ++panel) {
      copy_box(keys, memory.filled(tile), memory.tile(tile) + panel * Config::kTokens * kPanelRowBytes,
               item.group * Config::kHeadDim + panel * kPanelColumns, item.first_token + tile * Config::kTokens);
    }
  }
}

// One thread. Queries behind the live ones are of other requests; their results are not stored.
template <class Config>
__device__ __forceinline__ void copy_queries(const FlashAttentionArguments& args,
                                             const ShortAttentionMemory<Config>& memory, const CUtensorMap* queries,
                                             const ShortAttentionItem& item) {
  const auto rows = static_cast<int>(item.queries.first_row);
  arrive_expecting(memory.queries_filled(),
                   Config::kPanels * args.schedule.warpgroup_rows * args.group_heads * kPanelRowBytes);
#pragma unroll
  for (int panel = 0; panel < Config::kPanels; ++panel) {
    copy_box(queries, memory.queries_filled(), memory.queries() + panel * kWarpgroupRows * kPanelRowBytes,
             panel * kPanelColumns, item.queries.first_head, rows);
  }
}

// Sends the other warpgroup its columns' sums, adds what it sends to the own ones, and makes the denominators of all
// of the context.
template <class Config, class Sums>
__device__ __forceinline__ void exchange_sums(const ShortAttentionMemory<Config>& memory, const Sums& sums,
                                              const RunningSoftmax& softmax, int warpgroup, int thread,
                                              float (&own)[Config::kOwnSums], float (&denominator)[2]) {
#pragma unroll
  for (int i = 0; i < Config::kUnits; ++i) {
    float others[kUnitSums];
#pragma unroll
    for (int j = 0; j < kUnitSums; ++j) {
      const int e = i * kUnitSums + j;
      own[e] = warpgroup == 0 ? sums(e) : sums(Config::kOwnSums + e);
      others[j] = warpgroup == 0 ? sums(Config::kOwnSums + e) : sums(e);
    }
    memory.unit(warpgroup, i)[thread] = make_float4(others[0], others[1], others[2], others[3]);
  }
  memory.unit(warpgroup, Config::kUnits)[thread] =
      make_float4(softmax.base[0], softmax.base[1], softmax.sum[0], softmax.sum[1]);
  __syncthreads();
  const int other = 1 - warpgroup;
  const float4 of = memory.unit(other, Config::kUnits)[thread];
  const PartWeights weights[2] = {{softmax.base[0], of.x}, {softmax.base[1], of.y}};
  denominator[0] = sum_of_four_lanes(weights[0].add(softmax.sum[0], of.z));
  denominator[1] = sum_of_four_lanes(weights[1].add(softmax.sum[1], of.w));
#pragma unroll
  for (int i = 0; i < Config::kUnits; ++i) {
    const float4 sent = memory.unit(other, i)[thread];
    const float parts[kUnitSums] = {sent.x, sent.y, sent.z, sent.w};
#pragma unroll
    for (int j = 0; j < kUnitSums; ++j) {
      float& sum = own[i * kUnitSums + j];
      sum = weights[row_half(j)].add(sum, parts[j]);
    }
  }
}

// Divides a warpgroup's columns by the denominators and stores the live rows or their codes, in chunks of eight columns
// by way of the queries' memory. Without context tokens they are 0.
template <class Config>
__device__ __forceinline__ void store_columns(const FlashAttentionArguments& args, const WarpgroupQueries& queries,
                                              const float (&own)[Config::kOwnSums], const float (&denominator)[2],
                                              unsigned char* shared, int warpgroup, int thread) {
  constexpr int kChunks = Config::kOwnColumns / kChunkColumns;
  constexpr int kRows = 32 / kChunks;  // that a warp stores at once
  float inverse[2];                    // in units of the codes' scale, a power of two: rounding comes to the same
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    inverse[half] = denominator[half] == 0.0f ? 0.0f : args.codes.inverse / denominator[half];
  }
  const int first_chunk = warpgroup * kChunks;
  const int to = chunk_offset(kWarpgroupRows, accumulator_row(thread, 0), 0) + accumulator_column(thread, 0) * 2;
#pragma unroll
  for (int e = 0; e < Config::kOwnSums; e += 2) {
    // The second row is eight rows below the first one: its chunks are permuted alike.
    const int offset = move_to_chunk(kWarpgroupRows, to, first_chunk + e / 4) + row_half(e) * 8 * kPanelRowBytes;
    *reinterpret_cast<std::uint32_t*>(shared + offset) =
        pack_pair(own[e] * inverse[row_half(e)], own[e + 1] * inverse[row_half(e)]);
  }
  __syncwarp();  // a warp has its part of its 16 rows to itself
  const bool coded = args.codes.codes != nullptr;
  if (coded && warpgroup == 0) store_scales(args, queries, thread);
  const std::int64_t stride = coded ? args.codes.stride : args.out_stride;
  const int first = thread / 32 * 16 + thread % 32 / kChunks;
  const int chunk = first_chunk + thread % kChunks;
  const std::int64_t at = first_offset<Config::kHeadDim>(queries, stride) + chunk * kChunkColumns;
#pragma unroll
  for (int row = first; row < first + 16; row += kRows) {
    if (row >= queries.count) break;
    const uint4 values = *reinterpret_cast<const uint4*>(shared + chunk_offset(kWarpgroupRows, row, chunk));
    const std::int64_t place = at + query_offset(args, row, stride, Config::kHeadDim);
    if (coded) {
      *reinterpret_cast<uint2*>(args.codes.codes + place) = codes_of(values);
    } else {
      *reinterpret_cast<uint4*>(args.out + place) = values;
    }
  }
}

// The grid: tiles of rows of a request, groups, requests.
template <class Config>
__global__ void __launch_bounds__(Config::kThreads, 1)
    short_attention(const __grid_constant__ FlashAttentionMaps maps,
                    const __grid_constant__ FlashAttentionArguments args) {
  extern __shared__ __align__(1024) unsigned char short_attention_shared[];
  const ShortAttentionMemory<Config> memory(short_attention_shared);
  if (threadIdx.x == 0) {
    prefetch_map(&maps.queries);
    prefetch_map(&maps.keys);
    init_barrier(memory.queries_filled(), 1);
    for (int tile = 0; tile < Config::kStages; ++tile) init_barrier(memory.filled(tile), 1);
    publish_barriers();
  }
  __syncthreads();
  if (!args.settled) wait_for_previous_kernel();
  const ShortAttentionItem item = short_attention_item(args);
  const bool live = item.queries.count > 0;
  if (live && threadIdx.x == 0) copy_context(memory, &maps.keys, item);
  if (args.settled) wait_for_previous_kernel();
  if (!live) return;
  if (threadIdx.x == 0) copy_queries(args, memory, &maps.queries, item);

  using Layouts = FlashAttentionLayouts<Config>;
  using cute::_;
  const int warpgroup = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarpgroup, 0);
  const int thread = static_cast<int>(threadIdx.x) % kWarpgroup;
  typename Layouts::ScoreMma score_mma;
  typename Layouts::ValueMma value_mma;
  const auto queries = left_operand<typename Layouts::Queries>(score_mma, thread, memory.queries());
  const auto keys = right_operand<typename Layouts::Keys>(score_mma, thread, memory.tile(0));
  const auto values = right_operand<typename Layouts::Values>(value_mma, thread, memory.tile(0));
  auto scores = accumulators<Config::kTokens>(score_mma);
  auto sums = accumulators<Config::kHeadDim>(value_mma);
  auto numerators = numerator_registers<Config::kTokens>();
  cute::clear(sums);

  RunningSoftmax softmax;
  wait_barrier(memory.queries_filled(), 0);
#pragma unroll 1
  for (int tile = warpgroup; tile * Config::kTokens < item.tokens; tile += kFlashWarpgroups) {
    wait_barrier(memory.filled(tile), 0);
    start_product(score_mma, cute::GMMA::ScaleOut::Zero, queries(_, _, _, 0), keys(_, _, _, tile), scores);
    const int tokens = item.tokens - tile * Config::kTokens;
    if (tokens < Config::kTokens) {
      clear_tail<Config>(memory.tile(tile), tokens, thread);
      publish_shared();
      sync_warpgroup(warpgroup);
    }
    cute::warpgroup_wait<0>();
    cute::warpgroup_fence_operand(scores);
    if (tokens < Config::kTokens) mask_columns(scores, tokens, thread);
    softmax.advance(scores, args.scale_log2);
    if (softmax.grew) scale_rows(sums, softmax.shrink);
    round_numerators(scores, numerators);
    cute::warpgroup_fence_operand(numerators);
    start_product(value_mma, cute::GMMA::ScaleOut::One, numerators, values(_, _, _, tile), sums);
    cute::warpgroup_wait<0>();
    cute::warpgroup_fence_operand(sums);
  }
  allow_next_kernel();
  float own[Config::kOwnSums];
  float denominator[2];
  exchange_sums(memory, sums, softmax, warpgroup, thread, own, denominator);
  store_columns<Config>(args, item.queries, own, denominator, memory.queries(), warpgroup, thread);
}

}  // namespace onerec::cuda::kernels
