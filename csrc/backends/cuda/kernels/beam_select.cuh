// Second kernel of beam_select: one block per request. The W-th best block of groups gives a bound that W candidates
// reach; only what reaches it is looked at: first the groups of the best blocks, then the logits of the best groups.
// Where more reaches it than a list holds, the W-th best of that set is a higher bound. Few groups are looked at
// without their blocks.
#pragma once

#include "backends/cuda/kernels/beam_select_sets.cuh"
#include "backends/cuda/kernels/beam_select_sort.cuh"
#include "backends/cuda/kernels/grid_dependency.cuh"

namespace onerec::cuda::kernels {

// What select_kernel has in shared memory, with `capacity` elements each.
struct SelectLists {
  std::uint64_t* candidates;  // ranked keys
  std::uint64_t* others;      // blocks (32 bits each), then groups, then sorted candidates
  std::uint32_t* slots;

  static constexpr std::size_t bytes(std::size_t capacity) {
    return capacity * (2 * sizeof(std::uint64_t) + sizeof(std::uint32_t));
  }

  __device__ __forceinline__ explicit SelectLists(std::uint32_t capacity)
      : candidates(dynamic_shared<std::uint64_t>()),
        others(candidates + capacity),
        slots(reinterpret_cast<std::uint32_t*>(others + capacity)) {}
};

// The candidate of a ranked key, or for 0 a dead beam.
__device__ __forceinline__ void emit_beam(const SelectRequest& request, const Divisor& codes_of_row, std::uint32_t rank,
                                          std::uint64_t key) {
  const SelectParams& p = request.params;
  const std::int64_t next_row = std::int64_t{request.first_next} + rank;
  std::int64_t parent = request.rows > 0 ? request.first_row : -1;
  std::int32_t code = 0;
  std::int32_t state = -1;
  float score = -INFINITY;
  if (key != 0) {
    const std::uint32_t place = place_part(key);
    const std::uint32_t row = codes_of_row.quotient(place);
    code = static_cast<std::int32_t>(place - row * codes_of_row.divisor);
    state = 0;
    if (request.is_constrained) {
      state = request.terms[row].first_edge + code;
      code = p.edges->code[state];
    }
    parent += row;
    score = score_of(score_part(key));
  }
  extend_beam(p.links, parent, code, next_row);
  p.next_scores[next_row] = score;
  p.next_states[next_row] = state;
}

// The least score that reaches a bound.
__device__ __forceinline__ float score_of_bound(std::uint64_t bound) {
  const std::uint32_t lowest = score_key(-INFINITY);
  return score_of(max(score_part(bound), lowest));
}

// The candidates of a request that are among its first ones.
struct Selected {
  std::uint32_t count;
  float lowest;  // no score is below it
};

// Of the groups in `slots`, [count], those that reach `bound`, which is one of scores. The bins and shared.counts[2] to
// [4] are clear.
__device__ __forceinline__ Selected select_candidates(const SelectRequest& request, std::uint32_t groups,
                                                      std::uint64_t bound, std::uint32_t limit,
                                                      const SelectLists& lists, SelectShared& shared) {
  const std::uint32_t capacity = request.params.capacity;
  const float lowest = score_of_bound(bound);
  const auto reaches = [&](const auto& batch, int k) { return batch.score(k) >= lowest; };
  const auto write = [&](std::uint32_t at, const auto& batch, int k) {
    lists.candidates[at] = ranked_key(score_key(batch.score(k)), batch.place(k));
  };
  if (CodeSet::fits(request)) {
    const CodeSet candidates{request, lists.slots, groups};
    const std::uint32_t count = collect(candidates, capacity, shared.counts[2], reaches, write);
    if (count <= capacity) return {count, lowest};
  }
  int widest = 1;
  for (std::uint32_t i = threadIdx.x; i < groups; i += blockDim.x) {
    lists.others[i] = group_in_slot(request, lists.slots[i]);
    widest = max(widest, group_size(lists.others[i]));
  }
  widest = block_reduce(widest, 1, [](int a, int b) { return max(a, b); });
  const CandidateSet candidates{request, lists.others, groups, kWarp - __clz(widest - 1)};
  const std::uint32_t count = collect(candidates, capacity, shared.counts[3], reaches, write);
  if (count <= capacity) return {count, lowest};
  bound = find_bound(candidates, static_cast<std::uint32_t>(request.width), limit, shared).least;
  const auto ranks_enough = [&](const auto& batch, int k) { return ranked_key_of(batch, k) >= bound; };
  return {collect(candidates, capacity, shared.counts[4], ranks_enough, write), score_of_bound(bound)};
}

__device__ __forceinline__ void emit_beams(const SelectRequest& request, Selected selected, float highest,
                                           const SelectLists& lists, SelectShared& shared) {
  const std::uint32_t count = selected.count;
  const auto width = static_cast<std::uint32_t>(request.width);
  float lowest = selected.lowest;
  if (lowest == -INFINITY) {  // nothing is known of it
    lowest = highest;
    for (std::uint32_t i = threadIdx.x; i < count; i += blockDim.x) {
      lowest = fminf(lowest, score_of(score_part(lists.candidates[i])));
    }
    lowest = block_reduce(lowest, INFINITY, [](float a, float b) { return fminf(a, b); });
  }
  const bool differ = lowest < highest && highest - lowest < INFINITY;
  if (!differ || !sort_by_bins(lists.candidates, count, width, highest, lowest, lists.others, shared)) {
    std::uint32_t sorted = kWarp;
    while (sorted < count) sorted *= 2;
    for (std::uint32_t i = count + threadIdx.x; i < sorted; i += blockDim.x) lists.candidates[i] = 0;
    __syncthreads();
    sort_descending(lists.candidates, static_cast<int>(sorted));
  }
  const Divisor codes_of_row(request.params.layout.codebook);
  for (std::uint32_t i = threadIdx.x; i < width; i += blockDim.x) {
    emit_beam(request, codes_of_row, i, i < count ? lists.candidates[i] : 0);
  }
}

// Dynamic shared memory: SelectLists::bytes(p.capacity).
static __global__ void __launch_bounds__(kSelectThreads) select_kernel(SelectParams p) {
  overlap_with_neighbours();
  __shared__ SelectShared shared;
  __shared__ RowTerms held_terms[kHeldRows];
  shared.clear();
  SelectRequest request(p);
  if (request.width <= 0) return;
  const SelectLists lists(p.capacity);
  const auto rank = static_cast<std::uint32_t>(request.width);
  const std::uint32_t limit = min(rank + rank / 8 + 16, p.capacity);
  const auto write_place = [](std::uint32_t* list) {
    return [list](std::uint32_t at, const auto& batch, int k) { list[at] = batch.place(k); };
  };

  const std::uint32_t all_slots = static_cast<std::uint32_t>(request.rows) * p.layout.slots;
  const bool by_slots = all_slots <= KeyArray::kLoads * blockDim.x;
  const KeyArray tops =
      by_slots ? KeyArray(request.slot_keys(), all_slots) : KeyArray(request.block_keys(), all_slots / kSlotsPerBlock);
  if (request.rows <= kHeldRows) {
    for (int i = static_cast<int>(threadIdx.x); i < request.rows; i += static_cast<int>(blockDim.x)) {
      held_terms[i] = request.terms[i];
    }
    request.terms = held_terms;
  }
  const Bound of_tops = find_bound(tops, rank, limit, shared);
  std::uint64_t bound = of_tops.least;
  auto* tops_list = by_slots ? lists.slots : reinterpret_cast<std::uint32_t*>(lists.others);
  std::uint32_t count = collect(
      tops, p.capacity, shared.counts[0], [&](const auto& batch, int k) { return ranked_key_of(batch, k) >= bound; },
      write_place(tops_list));
  // From here on of the keys of other sets: slots and places rank differently within a score.
  bound = std::uint64_t{score_part(bound)} << 32;
  if (!by_slots) {
    const SlotSet slots(request.slot_keys(), tops_list, count);
    const std::uint32_t lowest = score_part(bound);
    count = collect(
        slots, p.capacity, shared.counts[1], [&](const auto& batch, int k) { return batch.key(k) >= lowest; },
        write_place(lists.slots));
    if (count > min(2 * limit, p.capacity)) {
      bound = find_bound(slots, rank, limit, shared).least;
      count = collect(
          slots, p.capacity, shared.counts[5],
          [&](const auto& batch, int k) { return ranked_key_of(batch, k) >= bound; }, write_place(lists.slots));
      bound = std::uint64_t{score_part(bound)} << 32;
    }
  }

  const Selected selected = select_candidates(request, count, bound, limit, lists, shared);
  emit_beams(request, selected, score_of(of_tops.highest), lists, shared);
}

}  // namespace onerec::cuda::kernels
