// First kernel of beam_select: one block per row reads the row's logits, once. It leaves the row's log-sum-exp, the
// best score of every group of its candidates, and the best score of every block of groups.
#pragma once

#include "backends/cuda/kernels/beam_select_layout.cuh"
#include "backends/cuda/kernels/grid_dependency.cuh"

namespace onerec::cuda::kernels {

struct SelectRowsParams {
  const float* logits;  // rows `stride` apart
  std::int64_t stride;
  RowLayout layout;
  std::int64_t batch;
  const std::int32_t* row_offsets;  // [batch + 1]
  const std::uint8_t* constrained;  // [batch], or null: no request is constrained
  const TrieEdges* edges;
  const std::uint32_t* blocked;  // this level's bits of request 0, `words` per request, or null
  std::int64_t words;
  const float* scores;         // [rows]
  const std::int32_t* states;  // [rows]
  std::int32_t* status;        // [batch]
  RowTerms* terms;             // out [rows]
  std::uint32_t* slot_keys;    // out [rows, layout.slots]: score keys, 0 in an empty slot
  std::uint32_t* block_keys;   // out [rows, layout.blocks()]
};

// Maxima over groups of kLanes neighbouring lanes (a power of two, at most kRowLoads) of values[k], for every k. Every
// lane of a group keeps its share: afterwards values[i] is the maximum of what was values[result + i], i < kRowLoads /
// kLanes.
template <int kLanes>
__device__ __forceinline__ int share_maxima(float (&values)[kRowLoads]) {
  int first = 0;
  int kept = kRowLoads;
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) {
    kept /= 2;
    const bool upper = (lane_index() & step) != 0;
#pragma unroll
    for (int i = 0; i < kRowLoads / 2; ++i) {
      if (i >= kept) break;
      const float mine = upper ? values[i + kept] : values[i];
      const float theirs = upper ? values[i] : values[i + kept];
      values[i] = fmaxf(mine, __shfl_xor_sync(kAllLanes, theirs, step));
    }
    if (upper) first += kept;
  }
  return first;
}

// keys[slot] = the score key of the best candidate there, for the rows of constrained requests. `keys` in shared
// memory.
__device__ __forceinline__ void score_edge_groups(const RowLayout& layout, const RowTerms& terms,
                                                  const std::int32_t* code, const std::uint32_t* blocked,
                                                  const float* logits, std::uint32_t* keys) {
  const int threads = static_cast<int>(blockDim.x);
  for (int slot = static_cast<int>(threadIdx.x); slot < layout.slots; slot += threads) keys[slot] = 0;
  __syncthreads();
  const EdgeGroups groups(layout, terms.count);
  const int lanes_log2 = kWarp - __clz(min(groups.per_group, kWarp) - 1);
  const int lanes = 1 << lanes_log2;  // that share a group
  const int in_group = lane_index() & (lanes - 1);
  for (int base = 0; base < groups.groups << lanes_log2; base += threads) {
    const int group = (base + static_cast<int>(threadIdx.x)) >> lanes_log2;
    std::uint32_t best = 0;
    if (group < groups.groups) {
      const int end = min((group + 1) * groups.per_group, groups.count);
      for (int i = group * groups.per_group + in_group; i < end; i += lanes) {
        const std::int32_t e = terms.first_edge + i;
        if (is_blocked(blocked, e)) continue;
        best = max(best, score_key(candidate_score(terms.cumulative, logits[code[e]], terms.lse)));
      }
    }
    for (int step = lanes / 2; step > 0; step /= 2) best = max(best, __shfl_xor_sync(kAllLanes, best, step));
    if (group < groups.groups && in_group == 0) keys[group * groups.spread] = best;
  }
  __syncthreads();
}

// Writes the keys of a row's slots and of its blocks; `key_of(slot)` gives them, for slots < layout.slots.
template <class KeyOf>
__device__ __forceinline__ void store_row_keys(const SelectRowsParams& p, std::int64_t row, KeyOf key_of) {
  const int slots = p.layout.slots;
  std::uint32_t* slot_keys = p.slot_keys + row * slots;
  std::uint32_t* block_keys = p.block_keys + row * p.layout.blocks();
  for (int base = 0; base < slots; base += static_cast<int>(blockDim.x)) {
    const int slot = base + static_cast<int>(threadIdx.x);
    std::uint32_t key = slot < slots ? key_of(slot) : 0;
    if (slot < slots) slot_keys[slot] = key;
#pragma unroll
    for (int step = kSlotsPerBlock / 2; step > 0; step /= 2) key = max(key, __shfl_xor_sync(kAllLanes, key, step));
    if (slot < slots && slot % kSlotsPerBlock == 0) block_keys[slot / kSlotsPerBlock] = key;
  }
}

// Dynamic shared memory: layout.slots words.
template <int kGroupCodes>
__global__ void __launch_bounds__(kRowThreads, 2) select_rows_kernel(SelectRowsParams p) {
  overlap_with_neighbours();
  __shared__ float2 scratch[kWarp];
  __shared__ std::int32_t request;
  // Loads that do not wait for each other.
  const std::int64_t row = blockIdx.x;
  const std::int32_t rows = p.row_offsets[p.batch];
  const std::int32_t state = p.states[row];
  const float cumulative = p.scores[row];
  find_request(p.row_offsets, p.batch, row, &request);
  if (row >= rows) return;
  if (state < 0) {
    store_row_keys(p, row, [](int) { return 0u; });
    return;
  }

  const float* logits = p.logits + row * p.stride;
  auto* maxima = dynamic_shared<float>();
  const float lse = row_log_sum_exp(logits, p.layout.codebook, scratch, [&](int base, float(&largest)[kRowLoads]) {
    constexpr int kLanes = kGroupCodes / 4;
    const int threads = static_cast<int>(blockDim.x);
    const int first = share_maxima<kLanes>(largest);
    const int group = base / kGroupCodes + static_cast<int>(threadIdx.x) / kLanes + first * (threads / kLanes);
#pragma unroll
    for (int i = 0; i < kRowLoads / kLanes; ++i) {
      const int at = group + i * (threads / kLanes);
      if (at < p.layout.groups) maxima[at] = largest[i];
    }
  });

  if (!(isfinite(lse) && cumulative < INFINITY)) {
    if (threadIdx.x == 0) atomicMax(&p.status[request], 1);
    store_row_keys(p, row, [](int) { return 0u; });
    return;
  }
  RowTerms terms{cumulative, lse, 0, p.layout.codebook};
  if (p.constrained == nullptr || p.constrained[request] == 0) {
    store_row_keys(p, row, [&](int slot) {
      return slot < p.layout.groups ? score_key(candidate_score(cumulative, maxima[slot], lse)) : 0u;
    });
  } else {
    terms.first_edge = p.edges->row_ptr[state];
    terms.count = p.edges->row_ptr[state + 1] - terms.first_edge;
    auto* keys = dynamic_shared<std::uint32_t>();
    const std::uint32_t* blocked = p.blocked == nullptr ? nullptr : p.blocked + request * p.words;
    score_edge_groups(p.layout, terms, p.edges->code, blocked, logits, keys);
    store_row_keys(p, row, [&](int slot) { return keys[slot]; });
  }
  if (threadIdx.x == 0) p.terms[row] = terms;
}

}  // namespace onerec::cuda::kernels
