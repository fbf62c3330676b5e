// Cross-attention on tensor cores (sm_90a). Blocks stay on their multiprocessor and walk over items: a tile of rows of
// one request and group, and the context of the request. One thread copies queries and context tiles into shared memory
// and runs ahead into the next item; of a settled context another one has brought the first tiles by then. Two
// warpgroups with 64 queries each multiply them, with a running maximum. The scores of a tile are computed while the
// values of the tile before it are summed. Where the context is cut into two splits, the two blocks that have those of
// the same queries may be a pair, a cluster of two, and add up their sums.
#pragma once

#include "backends/cuda/kernels/async_shared.cuh"
#include "backends/cuda/kernels/attention_layout.cuh"
#include "backends/cuda/kernels/attention_products.cuh"
#include "backends/cuda/kernels/flash_attention_arguments.cuh"
#include "backends/cuda/kernels/flash_attention_memory.cuh"
#include "backends/cuda/kernels/flash_attention_output.cuh"
#include "backends/cuda/kernels/grid_dependency.cuh"
#include "backends/cuda/kernels/running_softmax.cuh"

namespace onerec::cuda::kernels {

// --- the copying thread ---

// Describes item `number` in its slot and copies its queries. Queries behind the live ones are of other requests; their
// results are not stored.
template <class Config>
__device__ __forceinline__ void copy_item(const FlashAttentionArguments& args,
                                          const FlashAttentionMemory<Config>& memory, const CUtensorMap* map,
                                          const AttentionItem& item, int number) {
  const int slot = ring_stage(number, kItemSlots);
  const int warpgroup_rows = args.schedule.warpgroup_rows;
  const int consumers = live_rows(item, 1, warpgroup_rows) > 0 ? 2 : 1;
  std::uint64_t* filled = memory.item_filled(slot);
  wait_barrier(memory.item_emptied(slot), ring_parity(number, kItemSlots) ^ 1u);
  *memory.item(slot) = item;
  arrive_expecting(filled, consumers * Config::kPanels * warpgroup_rows * args.group_heads * kPanelRowBytes);
#pragma unroll 1
  for (int consumer = 0; consumer < consumers; ++consumer) {
#pragma unroll
    for (int panel = 0; panel < Config::kPanels; ++panel) {
      copy_box(map, filled, memory.queries(consumer, slot) + panel * kWarpgroupRows * kPanelRowBytes,
               panel * kPanelColumns, item.group * args.group_heads, item.first_row + consumer * warpgroup_rows);
    }
  }
}

// Uses of a ring are numbered from 0 on over all items of the block.
template <class Config>
__device__ __forceinline__ void copy_tile(const FlashAttentionMemory<Config>& memory, int ring, const CUtensorMap* map,
                                          int group, int token, int use) {
  const int stage = ring_stage(use, Config::kStages);
  std::uint64_t* filled = memory.filled(ring, stage);
  unsigned char* tile = memory.ring(ring, stage);
  wait_barrier(memory.emptied(ring, stage), ring_parity(use, Config::kStages) ^ 1u);
  arrive_expecting(filled, Config::kTileBytes);
#pragma unroll
  for (int panel = 0; panel < Config::kPanels; ++panel) {
    copy_box(map, filled, tile + panel * Config::kTokens * kPanelRowBytes,
             group * Config::kHeadDim + panel * kPanelColumns, token);
  }
}

// Tiles [begin, end) of an item in the order in which they are needed: the scores are one tile ahead of the values.
template <class Config>
__device__ __forceinline__ void copy_context(const FlashAttentionMemory<Config>& memory, const FlashAttentionMaps& maps,
                                             const AttentionItem& item, int first_use, int begin, int end) {
  using Memory = FlashAttentionMemory<Config>;
#pragma unroll 1
  for (int tile = begin; tile < end; ++tile) {
    const int token = item.last_token - tile * Config::kTokens;
    const int use = first_use + tile;
    copy_tile(memory, Memory::kKeys, &maps.keys, item.group, token, use);
    if constexpr (!Config::kShared) {
      if (tile > 0) copy_tile(memory, Memory::kValues, &maps.values, item.group, token + Config::kTokens, use - 1);
    }
  }
  if constexpr (!Config::kShared) {
    if (begin < end && end == item.tiles) {
      copy_tile(memory, Memory::kValues, &maps.values, item.group, item.last_token - (item.tiles - 1) * Config::kTokens,
                first_use + item.tiles - 1);
    }
  }
}

// Tiles of the first item that come before the previous kernel has ended, if the context is settled.
template <class Config>
__device__ __forceinline__ int tiles_ahead(const AttentionItem& item) {
  return min(item.tiles, Config::kStages);
}

// By another thread than the one that copies the items.
template <class Config>
__device__ __forceinline__ void copy_ahead(const FlashAttentionArguments& args,
                                           const FlashAttentionMemory<Config>& memory, const FlashAttentionMaps& maps) {
#pragma unroll 1
  for (int index = static_cast<int>(blockIdx.x); index < args.schedule.items; index += static_cast<int>(gridDim.x)) {
    const AttentionItem item = item_at(args.schedule, index, args.row_offsets, args.context_offsets);
    if (item.rows > 0) return copy_context(memory, maps, item, 0, 0, tiles_ahead<Config>(item));
  }
}

template <class Config>
__device__ __forceinline__ void copy_items(const FlashAttentionArguments& args,
                                           const FlashAttentionMemory<Config>& memory, const FlashAttentionMaps& maps) {
  int number = 0;
  int use = 0;
  wait_for_previous_kernel();
#pragma unroll 1
  for (int index = static_cast<int>(blockIdx.x); index < args.schedule.items; index += static_cast<int>(gridDim.x)) {
    const AttentionItem item = item_at(args.schedule, index, args.row_offsets, args.context_offsets);
    if (item.rows == 0) continue;
    copy_item(args, memory, &maps.queries, item, number);
    const bool begun = number == 0 && args.settled;
    copy_context(memory, maps, item, use, begun ? tiles_ahead<Config>(item) : 0, item.tiles);
    ++number;
    use += item.tiles;
  }
  // An item without rows is the end.
  const int slot = ring_stage(number, kItemSlots);
  wait_barrier(memory.item_emptied(slot), ring_parity(number, kItemSlots) ^ 1u);
  *memory.item(slot) = AttentionItem{};
  arrive(memory.item_filled(slot));
}

// --- the multiplying warpgroups ---

// The two warpgroups take turns at starting products, so that one has its exponentials while the tensor cores work for
// the other. Each takes and passes as many turns of an item as the other, or neither has any.
template <class Config>
class Turns {
 public:
  __device__ explicit Turns(int consumer) : consumer_(consumer) {
    if (consumer == 1) pass();
  }
  __device__ __forceinline__ void take() const {
    if constexpr (Config::kTurns) sync_threads(kFirst + consumer_, 2 * kWarpgroup);
  }
  __device__ __forceinline__ void pass() const {
    if constexpr (Config::kTurns) pass_threads(kFirst + 1 - consumer_, 2 * kWarpgroup);
  }
  // Once, at the end: takes the turn that is left.
  __device__ __forceinline__ void finish() const {
    if (consumer_ == 0) take();
  }

 private:
  static constexpr int kFirst = 1 + kFlashWarpgroups;
  int consumer_;
};

// Every warp reports that it is done with what the barrier guards.
__device__ __forceinline__ void release(std::uint64_t* emptied, int thread) {
  if (thread % 32 == 0) arrive(emptied);
}

// An item of which the warpgroup has no rows: it gives back the tiles as they come.
template <class Config>
__device__ __forceinline__ void look_on(const FlashAttentionMemory<Config>& memory, int tiles, int first_use,
                                        int thread) {
#pragma unroll 1
  for (int use = first_use; use < first_use + tiles; ++use) {
    const int stage = ring_stage(use, Config::kStages);
#pragma unroll
    for (int ring = 0; ring < Config::kRings; ++ring) {
      wait_barrier(memory.filled(ring, stage), ring_parity(use, Config::kStages));
      release(memory.emptied(ring, stage), thread);
    }
  }
}

// The same value, which the compiler cannot tell. With the first round of a loop told apart from the others by what it
// starts from, the assembler takes the warps of the loop for divergent, and keeps addresses in registers of threads.
__device__ __forceinline__ int hidden(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// The items of the block, of which this warpgroup has some queries each. The last values of an item are summed together
// with the first scores of the next one, and its sums stored behind those.
template <class Config>
__device__ __forceinline__ void attend_items(const FlashAttentionArguments& args,
                                             const FlashAttentionMemory<Config>& memory, int consumer) {
  using Memory = FlashAttentionMemory<Config>;
  using Layouts = FlashAttentionLayouts<Config>;
  using cute::_;
  constexpr int kStages = Config::kStages;
  constexpr int kNone = -1;
  const int thread = static_cast<int>(threadIdx.x) % kWarpgroup;
  const int warpgroup_rows = args.schedule.warpgroup_rows;
  const Turns<Config> turns(consumer);

  typename Layouts::ScoreMma score_mma;
  typename Layouts::ValueMma value_mma;
  const auto queries = left_operand<typename Layouts::Queries>(score_mma, thread, memory.queries(consumer));
  const auto keys = right_operand<typename Layouts::Keys>(score_mma, thread, memory.ring(Memory::kKeys));
  const auto values = right_operand<typename Layouts::Values>(value_mma, thread, memory.ring(Memory::kValues));
  auto scores = accumulators<Config::kTokens>(score_mma);
  auto sums = accumulators<Config::kHeadDim>(value_mma);
  auto numerators = numerator_registers<Config::kTokens>();

  // The first item makes numerators and sums of what is here, for nobody.
  cute::clear(scores);
  cute::clear(sums);

  RunningSoftmax softmax;  // of the item under way
  int use = 0;             // of the rings, by the next tile
  int summing = kNone;     // the use whose values are being summed
  int pending = kNone;     // the slot of the item whose last numerators, those of use - 1, are still to be summed

  const auto await = [&](int ring, int at) {
    wait_barrier(memory.filled(ring, ring_stage(at, kStages)), ring_parity(at, kStages));
  };
  const auto release_tile = [&](int ring, int at) { release(memory.emptied(ring, ring_stage(at, kStages)), thread); };
  const auto start_scores = [&](int slot) {
    start_product(score_mma, cute::GMMA::ScaleOut::Zero, queries(_, _, _, slot),
                  keys(_, _, _, ring_stage(use, kStages)), scores);
  };
  const auto start_sums = [&] {
    summing = pending == kNone ? kNone : use - 1;
    cute::warpgroup_fence_operand(numerators);
    start_product(value_mma, cute::GMMA::ScaleOut::One, numerators, values(_, _, _, ring_stage(use - 1, kStages)),
                  sums);
  };
  const auto finish_sums = [&] {
    cute::warpgroup_wait<0>();
    cute::warpgroup_fence_operand(sums);
    cute::warpgroup_fence_operand(numerators);
    if (summing != kNone) release_tile(Memory::kValues, summing);
    summing = kNone;
  };
  // Stands behind finish_sums and a branch: in one block of instructions with the exponentials, the assembler would
  // move the wait in front of them, and nothing would overlap.
  const auto make_numerators = [&] {
    if (softmax.grew) scale_rows(sums, softmax.shrink);
    round_numerators(scores, numerators);
    if (!Config::kShared && pending != kNone) await(Memory::kValues, use - 1);
  };
  const auto live_queries = [&](const AttentionItem& item) {
    return WarpgroupQueries{item.first_row + consumer * warpgroup_rows, item.group * args.group_heads,
                            live_rows(item, consumer, warpgroup_rows) * args.group_heads};
  };
  const auto store_pending = [&](const RunningSoftmax& of) {
    const AttentionItem item = *memory.item(pending);
    const auto store = [&](const float(&denominator)[2]) {
      sync_warpgroup(consumer);  // all of its warps are done with the queries
      store_output<Config::kHeadDim>(args, live_queries(item), sums, denominator, memory.queries(consumer, pending),
                                     thread_anew(thread));
    };
    if constexpr (Config::kPaired) {
      if (finishes(item, consumer)) {
        float denominator[2];
        add_part(memory, sums, of, denominator, thread_anew(thread));
        store(denominator);
      } else {
        send_part(memory, consumer, sums, of, thread_anew(thread));
      }
    } else {
      const float denominator[2] = {sum_of_four_lanes(of.sum[0]), sum_of_four_lanes(of.sum[1])};
      if (args.split_sums != nullptr) {
        store_split<Config::kHeadDim>(args, live_queries(item), item.split, sums, of, denominator, thread_anew(thread));
      } else {
        store(denominator);
      }
    }
    __syncwarp();
    release(memory.item_emptied(pending), thread);
    pending = kNone;
  };
  const auto finish_pending = [&] {
    if (pending == kNone) return;
    if (!Config::kPaired || use > 0) {  // a block of a pair may have no tiles, but its part in what follows
      make_numerators();
      start_sums();
      finish_sums();
    }
    store_pending(softmax);
  };

#pragma unroll 1
  for (int number = 0;; ++number) {
    const int slot = ring_stage(number, kItemSlots);
    wait_barrier(memory.item_filled(slot), ring_parity(number, kItemSlots));
    const AttentionItem item = *memory.item(slot);
    if (item.rows == 0) break;
    const WarpgroupQueries live = live_queries(item);
    if (item.tiles == 0 || live.count == 0) {
      if constexpr (!Config::kPaired) finish_pending();
      if (Config::kPaired && item.tiles == 0 && item.all_tiles > 0 && live.count > 0) {
        pending = slot;  // the other block has all tiles: it gets sums of 0, or sends its own
        continue;
      }
      if (item.tiles == 0) {
        if (!Config::kPaired || finishes(item, consumer)) {
          store_nothing<Config::kHeadDim>(args, live, item.split, thread);
        }
      } else {
        look_on(memory, item.tiles, use, thread);
      }
      use += item.tiles;
      __syncwarp();
      release(memory.item_emptied(slot), thread);
    } else {
      const bool with_turns = item.rows > warpgroup_rows;
      const int end = use + item.tiles;
      // Without an item before, sums of anything are started, which nobody stores: products behind a condition would
      // be serialised.
      make_numerators();
      await(Memory::kKeys, use);
      if (with_turns) turns.take();
      start_scores(slot);
      start_sums();
      if (with_turns) turns.pass();
      // The last tile of the request, which comes first, has tokens that are not the request's.
      const bool has_tail = item.last_tokens < Config::kTokens;
      if (has_tail) {
        await(Memory::kValues, use);
        clear_tail<Config>(memory.ring(Memory::kValues, ring_stage(use, kStages)), item.last_tokens, thread);
        publish_shared();
        sync_warpgroup(consumer);
      }
      cute::warpgroup_wait<1>();
      cute::warpgroup_fence_operand(scores);
      if constexpr (!Config::kShared) release_tile(Memory::kKeys, use);
      if (has_tail) mask_columns(scores, item.last_tokens, thread);
      const RunningSoftmax before = softmax;
      softmax = {};
      softmax.advance(scores, args.scale_log2);
      finish_sums();
      if (!Config::kPaired && pending != kNone) store_pending(before);
      cute::clear(sums);
      softmax.grew = false;
      pending = hidden(slot);

#pragma unroll 1
      for (++use; use < end; ++use) {
        finish_sums();
        make_numerators();
        await(Memory::kKeys, use);
        if (with_turns) turns.take();
        start_scores(slot);
        start_sums();
        if (with_turns) turns.pass();
        cute::warpgroup_wait<1>();
        cute::warpgroup_fence_operand(scores);
        if constexpr (!Config::kShared) release_tile(Memory::kKeys, use);
        softmax.advance(scores, args.scale_log2);
      }
      finish_sums();
    }
  }
  finish_pending();
  turns.finish();
}

template <class Config>
__device__ __forceinline__ void attend(const FlashAttentionMaps& maps, const FlashAttentionArguments& args) {
  static_assert(Config::kConsumers == 2, "they take turns");
  extern __shared__ __align__(1024) unsigned char flash_attention_shared[];
  const FlashAttentionMemory<Config> memory(flash_attention_shared);

  if (threadIdx.x == 0) {
    prefetch_map(&maps.queries);
    prefetch_map(&maps.keys);
    if constexpr (!Config::kShared) prefetch_map(&maps.values);
    constexpr int kConsumerWarps = Config::kConsumers * (kWarpgroup / 32);
    for (int slot = 0; slot < kItemSlots; ++slot) {
      init_barrier(memory.item_filled(slot), 1);
      init_barrier(memory.item_emptied(slot), kConsumerWarps);
    }
    for (int ring = 0; ring < Config::kRings; ++ring) {
      for (int stage = 0; stage < Config::kStages; ++stage) {
        init_barrier(memory.filled(ring, stage), 1);
        init_barrier(memory.emptied(ring, stage), kConsumerWarps);
      }
    }
    if constexpr (Config::kPaired) expect_mail(memory.mail(), (Config::kUnits + 1) * kUnitBytes);
    publish_barriers();
  }
  if constexpr (Config::kPaired) {
    __syncwarp();
    come_to_cluster_barrier();
    wait_at_cluster_barrier();
  } else {
    __syncthreads();
  }

  const int warpgroup = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarpgroup, 0);
  if (warpgroup == 0) {
    if (threadIdx.x == 32 && args.settled) copy_ahead(args, memory, maps);
    __syncwarp();
    give_up_registers<Config::kCopyRegisters>();
    if (threadIdx.x == 0) {
      copy_items(args, memory, maps);
    } else {
      wait_for_previous_kernel();
    }
  } else {
    take_registers<Config::kMultiplyRegisters>();
    wait_for_previous_kernel();
    allow_next_kernel();
    attend_items(args, memory, warpgroup - 1);
  }
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, 1)
    flash_attention(const __grid_constant__ FlashAttentionMaps maps, const FlashAttentionArguments args) {
  attend<Config>(maps, args);
}

// Paired: a block for every item.
template <class Config>
__global__ void __cluster_dims__(kFlashWarpgroups, 1, 1) __launch_bounds__(Config::kThreads, 1)
    paired_flash_attention(const __grid_constant__ FlashAttentionMaps maps, const FlashAttentionArguments args) {
  attend<Config>(maps, args);
}

}  // namespace onerec::cuda::kernels
