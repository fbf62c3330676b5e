// Cross-attention on tensor cores (sm_90a). A block takes a tile of queries of one request and group and walks over the
// context, whose tiles one thread copies into a ring in shared memory; two warpgroups with 64 queries each multiply
// them, with a running maximum. The scores of a tile are computed while the values of the tile before it are summed.
#pragma once

#include <cuda.h>

#include <cute/algorithm/gemm.hpp>
#include <cute/arch/mma_sm90.hpp>
#include <cute/atom/mma_atom.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>
#include <cute/tensor.hpp>

#include "backends/cuda/kernels/async_shared.cuh"
#include "backends/cuda/kernels/attention_layout.cuh"
#include "backends/cuda/kernels/flash_attention_arguments.cuh"
#include "backends/cuda/kernels/grid_dependency.cuh"
#include "backends/cuda/kernels/running_softmax.cuh"

namespace onerec::cuda::kernels {

template <int kHeadDim_, ContextTensors kContext_>
struct FlashAttentionConfig {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr ContextTensors kContext = kContext_;
  static constexpr bool kShared = kContext == ContextTensors::kShared;
  static constexpr int kConsumers = kFlashRows / kWarpgroupRows;  // warpgroups that multiply
  static constexpr int kRows = kFlashRows;
  static constexpr int kTokens = kFlashTokens;
  static constexpr int kStages = kShared ? 4 : 2;
  static constexpr int kRings = kShared ? 1 : 2;
  static constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
  static constexpr int kPanels = kHeadDim / kPanelColumns;
  static constexpr int kChunks = kHeadDim / kChunkColumns;

  static constexpr int kQueryBytes = kWarpgroupRows * kHeadDim * 2;  // of a warpgroup
  static constexpr int kTileBytes = kTokens * kHeadDim * 2;
  static constexpr int kBarrierOffset = kConsumers * kQueryBytes + kRings * kStages * kTileBytes;
  static constexpr int kSharedBytes = kBarrierOffset + kRings * kStages * 2 * 8;

  // Registers per thread of the copying and of the multiplying warpgroups; together the 168 that all start with.
  static constexpr int kCopyRegisters = 24;
  static constexpr int kMultiplyRegisters = 240;
};

// The same bytes seen by the two products: keys [token, column] and values [column, token].
template <class Config>
struct FlashAttentionLayouts {
  using Element = cute::bfloat16_t;
  using Queries = decltype(cute::tile_to_shape(cute::GMMA::Layout_K_SW128_Atom<Element>{},
                                               cute::Shape<cute::Int<kWarpgroupRows>, cute::Int<Config::kHeadDim>>{}));
  using Keys = decltype(cute::tile_to_shape(
      cute::GMMA::Layout_K_SW128_Atom<Element>{},
      cute::Shape<cute::Int<Config::kTokens>, cute::Int<Config::kHeadDim>, cute::Int<Config::kStages>>{}));
  using Values = decltype(cute::tile_to_shape(
      cute::GMMA::Layout_MN_SW128_Atom<Element>{},
      cute::Shape<cute::Int<Config::kHeadDim>, cute::Int<Config::kTokens>, cute::Int<Config::kStages>>{},
      cute::Step<cute::_2, cute::_1, cute::_3>{}));
  using ScoreMma = decltype(cute::make_tiled_mma(
      cute::GMMA::ss_op_selector<
          Element, Element, float,
          cute::Shape<cute::Int<kWarpgroupRows>, cute::Int<Config::kTokens>, cute::Int<Config::kHeadDim>>,
          cute::GMMA::Major::K, cute::GMMA::Major::K>()));
  using ValueMma = decltype(cute::make_tiled_mma(
      cute::GMMA::rs_op_selector<
          Element, Element, float,
          cute::Shape<cute::Int<kWarpgroupRows>, cute::Int<Config::kHeadDim>, cute::Int<Config::kTokens>>,
          cute::GMMA::Major::K, cute::GMMA::Major::MN>()));
};

// What a block does; the same for all of its threads.
struct FlashAttentionTask {
  std::int64_t first_row;    // of the request
  std::int64_t first_token;  // of the request
  int first_query;           // of the tile, within the request and group
  int queries;               // live ones in the tile
  int group;
  int split;
  int tokens;       // of the request
  TileRange tiles;  // of this split; walked from the last to the first, so that the one with an end comes first

  __device__ int count() const { return tiles.end - tiles.begin; }
};

template <class Config>
class FlashAttentionMemory {
 public:
  __device__ explicit FlashAttentionMemory(unsigned char* shared) : shared_(shared) {}

  __device__ unsigned char* queries(int consumer) const { return shared_ + consumer * Config::kQueryBytes; }
  // Ring 0 holds the keys; the last ring the values, which may be the same.
  __device__ unsigned char* ring(int ring) const {
    return shared_ + Config::kConsumers * Config::kQueryBytes + ring * Config::kStages * Config::kTileBytes;
  }
  __device__ std::uint64_t* filled(int ring, int stage) const { return barriers() + ring * Config::kStages + stage; }
  __device__ std::uint64_t* emptied(int ring, int stage) const {
    return barriers() + (Config::kRings + ring) * Config::kStages + stage;
  }

  static constexpr int kKeys = 0;
  static constexpr int kValues = Config::kRings - 1;

 private:
  __device__ std::uint64_t* barriers() const {
    return reinterpret_cast<std::uint64_t*>(shared_ + Config::kBarrierOffset);
  }

  unsigned char* shared_;
};

// --- the copying thread ---

template <class Config>
__device__ __forceinline__ void copy_tile(const FlashAttentionMemory<Config>& memory, int ring, const CUtensorMap* map,
                                          const FlashAttentionTask& task, int use) {
  const int stage = ring_stage(use, Config::kStages);
  std::uint64_t* filled = memory.filled(ring, stage);
  unsigned char* tile = memory.ring(ring) + stage * Config::kTileBytes;
  wait_barrier(memory.emptied(ring, stage), ring_parity(use, Config::kStages) ^ 1u);
  arrive_expecting(filled, Config::kTileBytes);
  const int row = static_cast<int>(task.first_token) + (task.tiles.end - 1 - use) * Config::kTokens;
#pragma unroll
  for (int panel = 0; panel < Config::kPanels; ++panel) {
    copy_box(map, filled, tile + panel * Config::kTokens * kPanelRowBytes,
             task.group * Config::kHeadDim + panel * kPanelColumns, row);
  }
}

template <class Config>
__device__ __forceinline__ void copy_context(const FlashAttentionMemory<Config>& memory, const CUtensorMap* keys,
                                             const CUtensorMap* values, const FlashAttentionTask& task) {
  using Memory = FlashAttentionMemory<Config>;
  const int count = task.count();
  // In the order in which they are needed: the scores are one tile ahead of the values.
#pragma unroll 1
  for (int use = 0; use < count; ++use) {
    copy_tile(memory, Memory::kKeys, keys, task, use);
    if constexpr (!Config::kShared) {
      if (use > 0) copy_tile(memory, Memory::kValues, values, task, use - 1);
    }
  }
  if constexpr (!Config::kShared) copy_tile(memory, Memory::kValues, values, task, count - 1);
}

// --- the multiplying warpgroups ---

// A warpgroup's queries; 0 behind the live ones.
template <class Config>
__device__ __forceinline__ void load_queries(const FlashAttentionArguments& args, const FlashAttentionTask& task,
                                             unsigned char* shared, int consumer, int thread) {
#pragma unroll 4
  for (int i = thread; i < kWarpgroupRows * Config::kChunks; i += kWarpgroup) {
    const int row = i / Config::kChunks;
    const int chunk = i % Config::kChunks;
    const int index = consumer * kWarpgroupRows + row;
    uint4 values = make_uint4(0, 0, 0, 0);
    if (index < task.queries) {
      const AttentionQuery query = query_at(task.first_row, task.group, args.group_heads, task.first_query + index);
      values = *reinterpret_cast<const uint4*>(args.q + query.row * args.q_stride + query.head * Config::kHeadDim +
                                               chunk * kChunkColumns);
    }
    *reinterpret_cast<uint4*>(shared + chunk_offset(kWarpgroupRows, row, chunk)) = values;
  }
}

// Sets the rows from `tokens` on of a tile of values to 0: what lies behind a request may be anything, and 0 * NaN is
// not 0. Both warpgroups do it, so that neither waits for the other. A row's chunks stay within its 128 bytes.
template <class Config>
__device__ __forceinline__ void clear_tail(unsigned char* tile, int tokens, int thread) {
  constexpr int kRowChunks = Config::kPanels * kPanelChunks;
  for (int i = tokens * kRowChunks + thread; i < Config::kTokens * kRowChunks; i += kWarpgroup) {
    const int row = i / kRowChunks;
    const int chunk = i % kRowChunks;
    *reinterpret_cast<uint4*>(tile + chunk_offset(Config::kTokens, row, chunk)) = make_uint4(0, 0, 0, 0);
  }
}

// Starts c (+)= a b; a wait for this group of products makes c readable.
template <class Mma, class A, class B, class C>
__device__ __forceinline__ void start_product(Mma& mma, cute::GMMA::ScaleOut first, A const& a, B const& b, C& c) {
  cute::warpgroup_fence_operand(c);
  cute::warpgroup_arrive();
  mma.accumulate_ = first;
#pragma unroll
  for (int k = 0; k < cute::size<2>(a); ++k) {
    cute::gemm(mma, a(cute::_, cute::_, k), b(cute::_, cute::_, k), c);
    mma.accumulate_ = cute::GMMA::ScaleOut::One;
  }
  cute::warpgroup_commit_batch();
}

// Every warp reports that its part of the products that read this stage is done.
__device__ __forceinline__ void release(std::uint64_t* emptied, int thread) {
  if (thread % 32 == 0) arrive(emptied);
}

// Divides the sums by the denominators and stores the live rows, in chunks of 16 bytes by way of the queries' memory.
template <class Config, class Sums>
__device__ __forceinline__ void store_output(const FlashAttentionArguments& args, const FlashAttentionTask& task,
                                             const Sums& sums, const float (&denominator)[2], unsigned char* shared,
                                             int consumer, int thread) {
  sync_threads(1 + consumer, kWarpgroup);  // all warps are done with the queries
  const float inverse[2] = {1.0f / denominator[0], 1.0f / denominator[1]};
#pragma unroll
  for (int e = 0; e < Config::kHeadDim / 2; e += 2) {
    const int row = accumulator_row(thread, e);
    const int column = accumulator_column(thread, e);
    const int offset = chunk_offset(kWarpgroupRows, row, column / kChunkColumns) + column % kChunkColumns * 2;
    *reinterpret_cast<std::uint32_t*>(shared + offset) =
        pack_pair(sums(e) * inverse[row_half(e)], sums(e + 1) * inverse[row_half(e)]);
  }
  __syncwarp();  // a warp has its 16 rows to itself
  const int warp = thread / 32;
#pragma unroll 4
  for (int i = thread % 32; i < 16 * Config::kChunks; i += 32) {
    const int row = warp * 16 + i / Config::kChunks;
    const int chunk = i % Config::kChunks;
    const int index = consumer * kWarpgroupRows + row;
    if (index >= task.queries) break;
    const AttentionQuery query = query_at(task.first_row, task.group, args.group_heads, task.first_query + index);
    *reinterpret_cast<uint4*>(args.out + query.row * args.out_stride + query.head * Config::kHeadDim +
                              chunk * kChunkColumns) =
        *reinterpret_cast<const uint4*>(shared + chunk_offset(kWarpgroupRows, row, chunk));
  }
}

__device__ __forceinline__ std::int64_t split_index(const FlashAttentionArguments& args, const FlashAttentionTask& task,
                                                    int index) {
  const AttentionQuery query = query_at(task.first_row, task.group, args.group_heads, task.first_query + index);
  return (task.split * args.rows_capacity + query.row) * args.heads + query.head;
}

template <class Config, class Sums>
__device__ __forceinline__ void store_split(const FlashAttentionArguments& args, const FlashAttentionTask& task,
                                            const Sums& sums, const RunningSoftmax& softmax,
                                            const float (&denominator)[2], int consumer, int thread) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int index = consumer * kWarpgroupRows + accumulator_row(thread, 2 * half);
    if (index >= task.queries) continue;
    const std::int64_t place = split_index(args, task, index);
    float* to = args.split_sums + place * Config::kHeadDim;
#pragma unroll
    for (int e = 2 * half; e < Config::kHeadDim / 2; e += 4) {
      *reinterpret_cast<float2*>(to + accumulator_column(thread, e)) = make_float2(sums(e), sums(e + 1));
    }
    if (thread % 4 == 0) {
      args.split_norms[place] = make_float2(softmax.largest[half], denominator[half]);
    }
  }
}

template <class Config>
__device__ __forceinline__ void attend(const FlashAttentionArguments& args, const FlashAttentionTask& task,
                                       const FlashAttentionMemory<Config>& memory, int consumer) {
  using Memory = FlashAttentionMemory<Config>;
  using Layouts = FlashAttentionLayouts<Config>;
  using Element = typename Layouts::Element;
  using cute::_;
  constexpr int kStages = Config::kStages;
  const int thread = static_cast<int>(threadIdx.x) % kWarpgroup;
  unsigned char* query_tile = memory.queries(consumer);

  load_queries<Config>(args, task, query_tile, consumer, thread);
  publish_shared();
  sync_threads(1 + consumer, kWarpgroup);

  typename Layouts::ScoreMma score_mma;
  typename Layouts::ValueMma value_mma;
  const auto as_elements = [](unsigned char* bytes) { return cute::make_smem_ptr(reinterpret_cast<Element*>(bytes)); };
  const auto queries = score_mma.get_slice(thread).partition_fragment_A(
      cute::make_tensor(as_elements(query_tile), typename Layouts::Queries{}));
  const auto keys = score_mma.get_slice(thread).partition_fragment_B(
      cute::make_tensor(as_elements(memory.ring(Memory::kKeys)), typename Layouts::Keys{}));
  const auto values = value_mma.get_slice(thread).partition_fragment_B(
      cute::make_tensor(as_elements(memory.ring(Memory::kValues)), typename Layouts::Values{}));
  auto scores =
      cute::partition_fragment_C(score_mma, cute::Shape<cute::Int<kWarpgroupRows>, cute::Int<Config::kTokens>>{});
  auto sums =
      cute::partition_fragment_C(value_mma, cute::Shape<cute::Int<kWarpgroupRows>, cute::Int<Config::kHeadDim>>{});
  auto numerators = cute::make_tensor<Element>(
      cute::Layout<
          cute::Shape<cute::Shape<cute::_2, cute::_2, cute::_2>, cute::_1, cute::Int<Config::kTokens / 16>>>{});

  const auto await = [&](int ring, int use) {
    wait_barrier(memory.filled(ring, ring_stage(use, kStages)), ring_parity(use, kStages));
  };
  const auto start_scores = [&](int use) {
    start_product(score_mma, cute::GMMA::ScaleOut::Zero, queries, keys(_, _, _, ring_stage(use, kStages)), scores);
  };
  const auto start_sums = [&](int use) {
    cute::warpgroup_fence_operand(numerators);
    start_product(value_mma, cute::GMMA::ScaleOut::One, numerators, values(_, _, _, ring_stage(use, kStages)), sums);
  };

  RunningSoftmax softmax;
  float shrink[2];
  const int count = task.count();
  cute::clear(sums);

  // The last tile of the request has tokens that are not the request's.
  const int tokens = task.tokens - (task.tiles.end - 1) * Config::kTokens;
  await(Memory::kKeys, 0);
  start_scores(0);
  if (tokens < Config::kTokens) {
    await(Memory::kValues, 0);
    clear_tail<Config>(memory.ring(Memory::kValues), tokens, thread);
    publish_shared();
    sync_threads(1 + consumer, kWarpgroup);
  }
  cute::warpgroup_wait<0>();
  cute::warpgroup_fence_operand(scores);
  if constexpr (!Config::kShared) release(memory.emptied(Memory::kKeys, 0), thread);
  if (tokens < Config::kTokens) mask_columns(scores, tokens, thread);
  softmax.advance(scores, args.scale_log2, shrink);

  // Waits for the sums up to tile use - 2, rescales them for the scores of tile use - 1, and rounds those. It stands at
  // the head of the loop: behind the exponentials in the same block of instructions, the assembler would move the wait
  // in front of them, and nothing would overlap.
  const auto finish_sums = [&](int use) {
    cute::warpgroup_wait<0>();
    cute::warpgroup_fence_operand(sums);
    cute::warpgroup_fence_operand(numerators);
    if (use > 1) release(memory.emptied(Memory::kValues, ring_stage(use - 2, kStages)), thread);
    scale_rows(sums, shrink);
    round_numerators(scores, numerators);
  };
#pragma unroll 1
  for (int use = 1; use < count; ++use) {
    finish_sums(use);
    await(Memory::kKeys, use);
    start_scores(use);
    if constexpr (!Config::kShared) await(Memory::kValues, use - 1);
    start_sums(use - 1);
    cute::warpgroup_wait<1>();
    cute::warpgroup_fence_operand(scores);
    if constexpr (!Config::kShared) release(memory.emptied(Memory::kKeys, ring_stage(use, kStages)), thread);
    softmax.advance(scores, args.scale_log2, shrink);
  }
  finish_sums(count);

  if constexpr (!Config::kShared) await(Memory::kValues, count - 1);
  start_sums(count - 1);
  allow_next_kernel();
  const float denominator[2] = {sum_of_four_lanes(softmax.sum[0]), sum_of_four_lanes(softmax.sum[1])};
  cute::warpgroup_wait<0>();
  cute::warpgroup_fence_operand(sums);
  cute::warpgroup_fence_operand(numerators);
  if (args.splits == 1) {
    store_output<Config>(args, task, sums, denominator, query_tile, consumer, thread);
  } else {
    store_split<Config>(args, task, sums, softmax, denominator, consumer, thread);
  }
}

// Without context tokens: the output is 0, and a split says that it has nothing to add.
template <class Config>
__device__ __forceinline__ void store_nothing(const FlashAttentionArguments& args, const FlashAttentionTask& task) {
  const int thread = static_cast<int>(threadIdx.x);
  if (args.splits > 1) {
    if (thread < task.queries) args.split_norms[split_index(args, task, thread)] = make_float2(-INFINITY, -1.0f);
    return;
  }
  for (int i = thread; i < task.queries * Config::kChunks; i += Config::kThreads) {
    const AttentionQuery query =
        query_at(task.first_row, task.group, args.group_heads, task.first_query + i / Config::kChunks);
    *reinterpret_cast<uint4*>(args.out + query.row * args.out_stride + query.head * Config::kHeadDim +
                              i % Config::kChunks * kChunkColumns) = make_uint4(0, 0, 0, 0);
  }
}

// Grid: query tiles of a request and group, groups, requests * splits. The maps show [tokens, groups * head_dim] in
// boxes of kTokens rows and 64 columns, with the 128-byte swizzle.
template <class Config>
__global__ void __launch_bounds__(Config::kThreads, 1)
    flash_attention(const __grid_constant__ CUtensorMap keys, const __grid_constant__ CUtensorMap values,
                    const FlashAttentionArguments args) {
  wait_for_previous_kernel();
  extern __shared__ __align__(1024) unsigned char flash_attention_shared[];
  using Memory = FlashAttentionMemory<Config>;
  const Memory memory(flash_attention_shared);

  const int request = static_cast<int>(blockIdx.z) / args.splits;
  FlashAttentionTask task;
  task.split = static_cast<int>(blockIdx.z) % args.splits;
  task.group = static_cast<int>(blockIdx.y);
  task.first_row = args.row_offsets[request];
  task.first_query = static_cast<int>(blockIdx.x) * Config::kRows;
  const int queries = (args.row_offsets[request + 1] - args.row_offsets[request]) * args.group_heads;
  task.queries = min(queries - task.first_query, Config::kRows);
  if (task.queries <= 0) return;
  task.first_token = args.context_offsets[request];
  task.tokens = args.context_offsets[request + 1] - args.context_offsets[request];
  task.tiles = split_tiles((task.tokens + Config::kTokens - 1) / Config::kTokens, args.splits, task.split);
  if (task.count() == 0) {
    store_nothing<Config>(args, task);
    return;
  }

  const int consumers = (task.queries + kWarpgroupRows - 1) / kWarpgroupRows;
  if (threadIdx.x == 0) {
    prefetch_map(&keys);
    if constexpr (!Config::kShared) prefetch_map(&values);
    for (int ring = 0; ring < Config::kRings; ++ring) {
      for (int stage = 0; stage < Config::kStages; ++stage) {
        init_barrier(memory.filled(ring, stage), 1);
        init_barrier(memory.emptied(ring, stage), consumers * (kWarpgroup / 32));
      }
    }
    publish_barriers();
  }
  __syncthreads();

  const int warpgroup = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarpgroup, 0);
  if (warpgroup == 0) {
    give_up_registers<Config::kCopyRegisters>();
    if (threadIdx.x == 0) copy_context<Config>(memory, &keys, &values, task);
  } else {
    take_registers<Config::kMultiplyRegisters>();
    if (warpgroup - 1 < consumers) attend<Config>(args, task, memory, warpgroup - 1);
  }
}

}  // namespace onerec::cuda::kernels
