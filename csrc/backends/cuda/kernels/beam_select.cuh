// Second kernel of beam_select: one block per request. The W-th best block of groups gives a bound that W candidates
// reach; only what reaches it is looked at: first the groups of the best blocks, then the logits of the best groups.
// Where more reaches it than a list holds, the W-th best of that set is a higher bound.
#pragma once

#include "backends/cuda/kernels/beam_select_bound.cuh"
#include "backends/cuda/kernels/beam_select_layout.cuh"
#include "backends/cuda/kernels/beam_select_sort.cuh"
#include "backends/cuda/kernels/grid_dependency.cuh"

namespace onerec::cuda::kernels {

inline constexpr int kSelectThreads = 1024;

struct SelectParams {
  const float* logits;  // rows `stride` apart
  std::int64_t stride;
  RowLayout layout;
  const std::int32_t* row_offsets;   // [batch + 1]
  const std::int32_t* next_offsets;  // [batch + 1]
  const std::uint8_t* constrained;   // [batch], or null: no request is constrained
  const TrieEdges* edges;
  const std::uint32_t* blocked;  // this level's bits of request 0, `words` per request, or null
  std::int64_t words;
  const RowTerms* terms;  // [rows], see SelectRowsParams
  const std::uint32_t* slot_keys;
  const std::uint32_t* block_keys;
  std::uint32_t capacity;  // of a list: a power of two, at least kWarp and any request's width
  BeamLinks links;
  float* next_scores;
  std::int32_t* next_states;
};

// One request of a batch; rows, slots and blocks count from its first row.
struct SelectRequest {
  RowLayout layout;
  const float* logits;
  std::int64_t stride;
  const RowTerms* terms;
  const std::uint32_t* slot_keys;
  const std::uint32_t* block_keys;
  const std::int32_t* code;      // of the level's edges; null: not constrained
  const std::uint32_t* blocked;  // this level's bits, or null
  std::int64_t first_row;
  int rows;
  std::int64_t first_next;
  int width;

  __device__ __forceinline__ SelectRequest(const SelectParams& p, std::int64_t b)
      : layout(p.layout),
        stride(p.stride),
        first_row(p.row_offsets[b]),
        rows(static_cast<int>(p.row_offsets[b + 1] - first_row)),
        first_next(p.next_offsets[b]),
        width(static_cast<int>(p.next_offsets[b + 1] - first_next)) {
    logits = p.logits + first_row * stride;
    terms = p.terms + first_row;
    slot_keys = p.slot_keys + first_row * layout.slots;
    block_keys = p.block_keys + first_row * layout.blocks();
    const bool is_constrained = p.constrained != nullptr && p.constrained[b] != 0;
    code = is_constrained ? p.edges->code : nullptr;
    blocked = is_constrained && p.blocked != nullptr ? p.blocked + b * p.words : nullptr;
  }
};

// All blocks of a request. The first ones of a thread stay in its registers.
struct BlockSet {
  static constexpr int kLoads = 8;

  const SelectRequest& request;
  std::uint32_t count;
  std::uint32_t held[kLoads];

  __device__ __forceinline__ explicit BlockSet(const SelectRequest& of)
      : request(of), count(static_cast<std::uint32_t>(of.rows) * static_cast<std::uint32_t>(of.layout.blocks())) {
    load(0, held);
  }

  template <class Visit>
  __device__ __forceinline__ void for_each(Visit visit) const {
    visit_batch(0, held, visit);
    for (std::uint32_t base = blockDim.x * kLoads; base < count; base += blockDim.x * kLoads) {
      std::uint32_t keys[kLoads];
      load(base, keys);
      visit_batch(base, keys, visit);
    }
  }

 private:
  __device__ __forceinline__ void load(std::uint32_t base, std::uint32_t (&keys)[kLoads]) const {
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      const std::uint32_t i = base + k * blockDim.x + threadIdx.x;
      keys[k] = i < count ? request.block_keys[i] : 0;
    }
  }

  template <class Visit>
  static __device__ __forceinline__ void visit_batch(std::uint32_t base, const std::uint32_t (&keys)[kLoads],
                                                     Visit& visit) {
    std::uint64_t ranked[kLoads];
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      ranked[k] = keys[k] == 0 ? 0 : ranked_key(keys[k], base + k * blockDim.x + threadIdx.x);
    }
    visit(ranked);
  }
};

// The groups of the blocks in a list. The first ones of a thread stay in its registers.
struct GroupSet {
  static constexpr int kLoads = 3;
  static constexpr std::uint32_t kVectors = kSlotsPerBlock / 4;  // of a block

  const SelectRequest& request;
  const std::uint64_t* blocks;  // [count] keys
  std::uint32_t count;
  uint4 held[kLoads];

  __device__ __forceinline__ GroupSet(const SelectRequest& of, const std::uint64_t* list, std::uint32_t blocks_in_list)
      : request(of), blocks(list), count(blocks_in_list) {
    load(0, held);
  }

  template <class Visit>
  __device__ __forceinline__ void for_each(Visit visit) const {
    visit_batch(0, held, visit);
    for (std::uint32_t base = blockDim.x * kLoads; base < count * kVectors; base += blockDim.x * kLoads) {
      uint4 keys[kLoads];
      load(base, keys);
      visit_batch(base, keys, visit);
    }
  }

 private:
  // The first of four slots.
  __device__ __forceinline__ std::uint32_t slot(std::uint32_t i) const {
    return place_part(blocks[i / kVectors]) * kSlotsPerBlock + i % kVectors * 4;
  }

  __device__ __forceinline__ void load(std::uint32_t base, uint4 (&keys)[kLoads]) const {
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      const std::uint32_t i = base + k * blockDim.x + threadIdx.x;
      keys[k] = i < count * kVectors ? load_vector(request.slot_keys + slot(i)) : make_uint4(0, 0, 0, 0);
    }
  }

  template <class Visit>
  __device__ __forceinline__ void visit_batch(std::uint32_t base, const uint4 (&keys)[kLoads], Visit& visit) const {
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      const std::uint32_t i = base + k * blockDim.x + threadIdx.x;
      const std::uint32_t first = i < count * kVectors ? slot(i) : 0;
      const std::uint32_t four[4] = {keys[k].x, keys[k].y, keys[k].z, keys[k].w};
      std::uint64_t ranked[4];
#pragma unroll
      for (std::uint32_t j = 0; j < 4; ++j) ranked[j] = four[j] == 0 ? 0 : ranked_key(four[j], first + j);
      visit(ranked);
    }
  }
};

// A group as 64 bits: its row, its first candidate (a code, or the how-manieth edge of the row) and their number.
inline constexpr int kGroupCountBits = 6;
static_assert(kMaxGroupCodes < 1 << kGroupCountBits, "a group's count is packed");

__device__ __forceinline__ std::uint64_t decode_group(const SelectRequest& request, std::uint64_t key) {
  const RowLayout& layout = request.layout;
  const std::uint32_t slot = place_part(key);
  const std::uint32_t row = slot / static_cast<std::uint32_t>(layout.slots);
  const int in_row = static_cast<int>(slot - row * static_cast<std::uint32_t>(layout.slots));
  int first = in_row * layout.group_codes;
  int end = min(first + layout.group_codes, layout.codebook);
  if (request.code != nullptr) {
    const EdgeGroups groups(layout, request.terms[row].count);
    first = in_row / groups.spread * groups.per_group;
    end = min(first + groups.per_group, groups.count);
  }
  return static_cast<std::uint64_t>(row) << 32 |
         (static_cast<std::uint32_t>(first) << kGroupCountBits | static_cast<std::uint32_t>(end - first));
}

// The candidates of the groups in a list. A candidate's place is row * codebook + its code, or where the request is
// constrained its number among the edges of the row: within a row both ascend alike.
struct CandidateSet {
  static constexpr int kLoads = 5;
  static constexpr std::uint32_t kNone = ~0u;

  const SelectRequest& request;
  const std::uint64_t* groups;  // [count], see decode_group()
  std::uint32_t count;
  int lanes_log2;  // consecutive lanes share a group; at least as many as its candidates

  template <class Visit>
  __device__ __forceinline__ void for_each(Visit visit) const {
    const std::uint32_t all = count << lanes_log2;
    for (std::uint32_t base = 0; base < all; base += blockDim.x * kLoads) {
      std::uint64_t keys[kLoads];
      load(base, all, keys);
      visit(keys);
    }
  }

 private:
  struct Place {
    std::uint32_t row;
    std::uint32_t number;  // within the row
    bool is;
  };

  __device__ __forceinline__ Place place(std::uint32_t i, std::uint32_t all) const {
    const std::uint64_t group = i < all ? groups[i >> lanes_log2] : 0;
    const auto span = static_cast<std::uint32_t>(group);
    const std::uint32_t in_group = i & ((1u << lanes_log2) - 1);
    return {static_cast<std::uint32_t>(group >> 32), (span >> kGroupCountBits) + in_group,
            in_group < (span & ((1u << kGroupCountBits) - 1))};
  }

  // Step by step for all keys, so that loads do not wait for each other.
  __device__ __forceinline__ void load(std::uint32_t base, std::uint32_t all, std::uint64_t (&keys)[kLoads]) const {
    std::uint32_t codes[kLoads];  // kNone: there is no such candidate
    float2 terms[kLoads];
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      const Place at = place(base + k * blockDim.x + threadIdx.x, all);
      codes[k] = at.is ? at.number : kNone;
      terms[k] =
          at.is ? make_float2(request.terms[at.row].cumulative, request.terms[at.row].lse) : make_float2(0.0f, 0.0f);
    }
    if (request.code != nullptr) {
#pragma unroll
      for (int k = 0; k < kLoads; ++k) {
        if (codes[k] == kNone) continue;
        const Place at = place(base + k * blockDim.x + threadIdx.x, all);
        const std::int32_t e = request.terms[at.row].first_edge + static_cast<std::int32_t>(at.number);
        codes[k] = is_blocked(request.blocked, e) ? kNone : static_cast<std::uint32_t>(request.code[e]);
      }
    }
    float logits[kLoads];
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      const Place at = place(base + k * blockDim.x + threadIdx.x, all);
      logits[k] = codes[k] != kNone ? request.logits[at.row * request.stride + codes[k]] : 0.0f;
    }
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      const Place at = place(base + k * blockDim.x + threadIdx.x, all);
      const std::uint32_t number = at.row * static_cast<std::uint32_t>(request.layout.codebook) + at.number;
      const float score = candidate_score(terms[k].x, logits[k], terms[k].y);
      keys[k] = codes[k] == kNone ? 0 : ranked_key(score_key(score), number);
    }
  }
};

__device__ __forceinline__ void emit_beams(const SelectParams& p, const SelectRequest& request,
                                           const std::uint64_t* keys, std::uint32_t count) {
  for (int j = static_cast<int>(threadIdx.x); j < request.width; j += static_cast<int>(blockDim.x)) {
    const std::int64_t next_row = request.first_next + j;
    std::int64_t parent = request.rows > 0 ? request.first_row : -1;
    std::int32_t code = 0;
    std::int32_t state = -1;
    float score = -INFINITY;
    if (static_cast<std::uint32_t>(j) < count) {
      const auto codebook = static_cast<std::uint32_t>(request.layout.codebook);
      const std::uint32_t place = place_part(keys[j]);
      const std::uint32_t row = place / codebook;
      code = static_cast<std::int32_t>(place - row * codebook);
      state = 0;
      if (request.code != nullptr) {
        state = request.terms[row].first_edge + code;
        code = request.code[state];
      }
      parent += row;
      score = score_of(score_part(keys[j]));
    }
    extend_beam(p.links, parent, code, next_row);
    p.next_scores[next_row] = score;
    p.next_states[next_row] = state;
  }
}

// A bound for the keys of another set. Slots and places rank differently within a score, so only the score holds there.
__device__ __forceinline__ std::uint64_t score_bound(std::uint64_t bound) {
  return max(std::uint64_t{score_part(bound)} << 32, std::uint64_t{1});
}

// Dynamic shared memory: two lists of p.capacity keys.
static __global__ void __launch_bounds__(kSelectThreads) select_kernel(SelectParams p) {
  overlap_with_neighbours();
  const SelectRequest request(p, blockIdx.x);
  if (request.width <= 0) return;
  __shared__ BoundShared shared;
  auto* first_list = dynamic_shared<std::uint64_t>();
  std::uint64_t* second_list = first_list + p.capacity;
  const auto rank = static_cast<std::uint32_t>(request.width);
  const std::uint32_t limit = min(rank + rank / 8 + 16, p.capacity);

  const BlockSet blocks(request);
  std::uint64_t bound = find_bound(blocks, rank, limit, shared);
  std::uint32_t count = collect(blocks, bound, first_list, p.capacity, shared);

  const GroupSet groups(request, first_list, count);
  bound = score_bound(bound);
  count = collect(groups, bound, second_list, p.capacity, shared);
  if (count > min(2 * limit, p.capacity)) {
    bound = find_bound(groups, rank, limit, shared);
    count = collect(groups, bound, second_list, p.capacity, shared);
  }
  bound = score_bound(bound);
  int widest = 1;
  for (std::uint32_t i = threadIdx.x; i < count; i += blockDim.x) {
    const std::uint64_t group = decode_group(request, second_list[i]);
    second_list[i] = group;
    widest = max(widest, static_cast<int>(group & ((1u << kGroupCountBits) - 1)));
  }
  widest = block_reduce(widest, 1, [](int a, int b) { return max(a, b); });

  const CandidateSet candidates{request, second_list, count, kWarp - __clz(widest - 1)};
  count = collect(candidates, bound, first_list, p.capacity, shared);
  if (count > p.capacity) {
    bound = find_bound(candidates, rank, limit, shared);
    count = collect(candidates, bound, first_list, p.capacity, shared);
  }
  std::uint32_t sorted = kWarp;
  while (sorted < count) sorted *= 2;
  for (std::uint32_t i = count + threadIdx.x; i < sorted; i += blockDim.x) first_list[i] = 0;
  __syncthreads();
  sort_descending(first_list, static_cast<int>(sorted));
  emit_beams(p, request, first_list, count);
}

}  // namespace onerec::cuda::kernels
