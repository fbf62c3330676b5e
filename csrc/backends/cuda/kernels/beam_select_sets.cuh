// The sets of keys that the second kernel of beam_select goes through: blocks or slots, the slots of some blocks, and
// the candidates of some slots. Loads of a batch do not wait for each other.
#pragma once

#include "backends/cuda/kernels/beam_select_bound.cuh"
#include "backends/cuda/kernels/beam_select_layout.cuh"

namespace onerec::cuda::kernels {

// Division by a number that is the same for all threads. Any numerator.
struct Divisor {
  std::uint32_t divisor;
  std::uint32_t inverse;

  __device__ __forceinline__ explicit Divisor(int of)
      : divisor(static_cast<std::uint32_t>(of)), inverse(~0u / divisor) {}

  // At most 1 too small before the correction.
  __device__ __forceinline__ std::uint32_t quotient(std::uint32_t numerator) const {
    const auto near = static_cast<std::uint32_t>(std::uint64_t{numerator} * inverse >> 32);
    return near + (numerator - near * divisor >= divisor ? 1 : 0);
  }
};

// Requests of at most so many rows have the terms of their rows in shared memory.
inline constexpr int kHeldRows = 1024;

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

// The request of a block; rows, slots and blocks count from its first row.
struct SelectRequest {
  const SelectParams& params;
  std::int32_t first_row;
  std::int32_t rows;
  std::int32_t first_next;
  std::int32_t width;
  bool is_constrained;
  const RowTerms* terms;

  __device__ __forceinline__ explicit SelectRequest(const SelectParams& p, std::int64_t b = blockIdx.x)
      : params(p),
        first_row(p.row_offsets[b]),
        rows(p.row_offsets[b + 1] - first_row),
        first_next(p.next_offsets[b]),
        width(p.next_offsets[b + 1] - first_next),
        is_constrained(p.constrained != nullptr && p.constrained[b] != 0),
        terms(p.terms + first_row) {}

  __device__ __forceinline__ const float* logits(std::uint32_t row) const {
    return params.logits + (std::int64_t{first_row} + row) * params.stride;
  }
  __device__ __forceinline__ const std::uint32_t* slot_keys() const {
    return params.slot_keys + std::int64_t{first_row} * params.layout.slots;
  }
  __device__ __forceinline__ const std::uint32_t* blocked() const {
    return params.blocked == nullptr ? nullptr : params.blocked + blockIdx.x * params.words;
  }
  __device__ __forceinline__ const std::uint32_t* block_keys() const {
    return params.block_keys + std::int64_t{first_row} * params.layout.blocks();
  }
};

// Score keys in global memory, a key's place being its index. The first ones of a thread stay in its registers.
struct KeyArray {
  static constexpr int kLoads = 8;

  struct Batch {
    static constexpr int kKeys = kLoads;
    std::uint32_t base;
    std::uint32_t keys[kLoads];

    __device__ __forceinline__ std::uint32_t key(int k) const { return keys[k]; }
    __device__ __forceinline__ std::uint32_t place(int k) const { return base + k * blockDim.x; }
  };

  const std::uint32_t* keys;
  std::uint32_t count;
  Batch held;

  __device__ __forceinline__ KeyArray(const std::uint32_t* array, std::uint32_t keys_in_array)
      : keys(array), count(keys_in_array), held(load(0)) {}

  template <class Visit>
  __device__ __forceinline__ void for_each(Visit visit) const {
    Batch batch = held;
    for (std::uint32_t base = blockDim.x * kLoads;; base += blockDim.x * kLoads) {
      visit(batch);
      if (base >= count) return;
      batch = load(base);
    }
  }

 private:
  __device__ __forceinline__ Batch load(std::uint32_t base) const {
    Batch batch;
    batch.base = base + threadIdx.x;
#pragma unroll
    for (int k = 0; k < kLoads; ++k) batch.keys[k] = batch.place(k) < count ? keys[batch.place(k)] : 0;
    return batch;
  }
};

// The slots of the blocks in a list. The first ones of a thread stay in its registers.
struct SlotSet {
  static constexpr int kLoads = 3;
  static constexpr std::uint32_t kVectors = kSlotsPerBlock / 4;  // of a block

  struct Batch {
    static constexpr int kKeys = 4 * kLoads;
    std::uint32_t first[kLoads];  // of four slots
    uint4 keys[kLoads];

    __device__ __forceinline__ std::uint32_t key(int k) const {
      const uint4 four = keys[k / 4];
      return k % 4 == 0 ? four.x : k % 4 == 1 ? four.y : k % 4 == 2 ? four.z : four.w;
    }
    __device__ __forceinline__ std::uint32_t place(int k) const { return first[k / 4] + k % 4; }
  };

  const std::uint32_t* slot_keys;
  const std::uint32_t* blocks;  // [count], in shared memory
  std::uint32_t count;
  Batch held;

  __device__ __forceinline__ SlotSet(const std::uint32_t* keys, const std::uint32_t* list, std::uint32_t blocks_in_list)
      : slot_keys(keys), blocks(list), count(blocks_in_list), held(load(0)) {}

  template <class Visit>
  __device__ __forceinline__ void for_each(Visit visit) const {
    Batch batch = held;
    for (std::uint32_t base = blockDim.x * kLoads;; base += blockDim.x * kLoads) {
      visit(batch);
      if (base >= count * kVectors) return;
      batch = load(base);
    }
  }

 private:
  __device__ __forceinline__ Batch load(std::uint32_t base) const {
    Batch batch;
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      const std::uint32_t i = base + k * blockDim.x + threadIdx.x;
      const bool is = i < count * kVectors;
      batch.first[k] = is ? blocks[i / kVectors] * kSlotsPerBlock + i % kVectors * 4 : 0;
      batch.keys[k] = is ? load_vector(slot_keys + batch.first[k]) : make_uint4(0, 0, 0, 0);
    }
    return batch;
  }
};

// A candidate's place is row * codebook + its code, or where the request is constrained its number among the edges of
// the row: within a row both ascend alike. kWidth neighbours have a place together.
template <int kLoads, int kWidth>
struct CandidateBatch {
  static constexpr int kKeys = kLoads * kWidth;
  std::uint32_t first[kLoads];
  float scores[kKeys];  // NaN: there is no such candidate

  __device__ __forceinline__ float score(int k) const { return scores[k]; }
  __device__ __forceinline__ std::uint32_t key(int k) const { return isnan(scores[k]) ? 0 : score_key(scores[k]); }
  __device__ __forceinline__ std::uint32_t place(int k) const { return first[k / kWidth] + k % kWidth; }
};

// A number where there is a candidate, else NaN, for all `terms` and logits.
__device__ __forceinline__ float score_or_nan(bool is, RowTerms terms, float logit) {
  return candidate_score(is ? terms.cumulative : bits_as<float>(0x7fffffffu), logit, terms.lse);
}

// The candidates of slots of a request that is not constrained and whose groups of codes begin at multiples of 16 bytes
// and have a multiple of four codes.
struct CodeSet {
  static constexpr int kLoads = 4;

  const SelectRequest& request;
  const std::uint32_t* slots;  // [count], in shared memory
  std::uint32_t count;

  static __device__ __forceinline__ bool fits(const SelectRequest& request) {
    const SelectParams& p = request.params;
    return !request.is_constrained && p.layout.codebook % 4 == 0 && p.stride % 4 == 0 &&
           reinterpret_cast<std::uintptr_t>(p.logits) % 16 == 0;
  }

  template <class Visit>
  __device__ __forceinline__ void for_each(Visit visit) const {
    const int vectors_log2 = 29 - __clz(request.params.layout.group_codes);  // of a group
    const std::uint32_t all = count << vectors_log2;
    const Divisor slots_of_row(request.params.layout.slots);
    for (std::uint32_t base = 0; base < all; base += blockDim.x * kLoads) {
      visit(load(base, all, vectors_log2, slots_of_row));
    }
  }

 private:
  __device__ __forceinline__ CandidateBatch<kLoads, 4> load(std::uint32_t base, std::uint32_t all, int vectors_log2,
                                                            const Divisor& slots_of_row) const {
    const RowLayout& layout = request.params.layout;
    CandidateBatch<kLoads, 4> batch;
    std::uint32_t rows[kLoads];
    bool is[kLoads];
    float4 logits[kLoads];
    // Loads without a condition, of code 0 where there are no such candidates, are the ones that come all at once.
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      const std::uint32_t i = base + k * blockDim.x + threadIdx.x;
      const std::uint32_t slot = slots[min(i, all - 1) >> vectors_log2];
      rows[k] = slots_of_row.quotient(slot);
      const std::uint32_t group = slot - rows[k] * static_cast<std::uint32_t>(layout.slots);
      const std::uint32_t code = ((group << vectors_log2) + (i & ((1u << vectors_log2) - 1))) * 4;
      is[k] = i < all && code < static_cast<std::uint32_t>(layout.codebook);
      batch.first[k] = rows[k] * static_cast<std::uint32_t>(layout.codebook) + code;
      logits[k] = *reinterpret_cast<const float4*>(request.logits(rows[k]) + (is[k] ? code : 0));
    }
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      const RowTerms terms = request.terms[rows[k]];
      batch.scores[4 * k] = score_or_nan(is[k], terms, logits[k].x);
      batch.scores[4 * k + 1] = score_or_nan(is[k], terms, logits[k].y);
      batch.scores[4 * k + 2] = score_or_nan(is[k], terms, logits[k].z);
      batch.scores[4 * k + 3] = score_or_nan(is[k], terms, logits[k].w);
    }
    return batch;
  }
};

// A group as 64 bits: its row, its first candidate (a code, or the how-manieth edge of the row) and their number.
inline constexpr int kGroupCountBits = 6;
static_assert(kMaxGroupCodes < 1 << kGroupCountBits, "a group's count is packed");

__device__ __forceinline__ int group_size(std::uint64_t group) {
  return static_cast<int>(group & ((1u << kGroupCountBits) - 1));
}

__device__ __forceinline__ std::uint64_t group_in_slot(const SelectRequest& request, std::uint32_t slot) {
  const RowLayout& layout = request.params.layout;
  const std::uint32_t row = slot / static_cast<std::uint32_t>(layout.slots);
  const int in_row = static_cast<int>(slot - row * static_cast<std::uint32_t>(layout.slots));
  int first = in_row * layout.group_codes;
  int end = min(first + layout.group_codes, layout.codebook);
  if (request.is_constrained) {
    const EdgeGroups groups(layout, request.terms[row].count);
    first = in_row / groups.spread * groups.per_group;
    end = min(first + groups.per_group, groups.count);
  }
  return static_cast<std::uint64_t>(row) << 32 |
         (static_cast<std::uint32_t>(first) << kGroupCountBits | static_cast<std::uint32_t>(end - first));
}

// The candidates of groups of any request.
struct CandidateSet {
  static constexpr int kLoads = 3;

  const SelectRequest& request;
  const std::uint64_t* groups;  // [count], see group_in_slot(), in shared memory
  std::uint32_t count;
  int lanes_log2;  // consecutive lanes share a group; at least as many as its candidates

  template <class Visit>
  __device__ __forceinline__ void for_each(Visit visit) const {
    const std::uint32_t all = count << lanes_log2;
    for (std::uint32_t base = 0; base < all; base += blockDim.x * kLoads) visit(load(base, all));
  }

 private:
  // Step by step for all keys, so that loads do not wait for each other.
  __device__ __forceinline__ CandidateBatch<kLoads, 1> load(std::uint32_t base, std::uint32_t all) const {
    CandidateBatch<kLoads, 1> batch;
    std::uint32_t rows[kLoads];
    std::uint32_t codes[kLoads];
    bool is[kLoads];
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      const std::uint32_t i = base + k * blockDim.x + threadIdx.x;
      const std::uint64_t group = i < all ? groups[i >> lanes_log2] : 0;
      const std::uint32_t in_group = i & ((1u << lanes_log2) - 1);
      is[k] = in_group < static_cast<std::uint32_t>(group_size(group));
      rows[k] = static_cast<std::uint32_t>(group >> 32);
      codes[k] = (static_cast<std::uint32_t>(group) >> kGroupCountBits) + in_group;
      batch.first[k] = rows[k] * static_cast<std::uint32_t>(request.params.layout.codebook) + codes[k];
    }
    if (request.is_constrained) {
      const std::int32_t* code = request.params.edges->code;
      const std::uint32_t* blocked = request.blocked();
#pragma unroll
      for (int k = 0; k < kLoads; ++k) {
        if (!is[k]) continue;
        const std::int32_t e = request.terms[rows[k]].first_edge + static_cast<std::int32_t>(codes[k]);
        codes[k] = static_cast<std::uint32_t>(code[e]);
        is[k] = !is_blocked(blocked, e);
      }
    }
    float logits[kLoads];
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      logits[k] = is[k] ? request.logits(rows[k])[codes[k]] : 0.0f;
    }
#pragma unroll
    for (int k = 0; k < kLoads; ++k) batch.scores[k] = score_or_nan(is[k], request.terms[rows[k]], logits[k]);
    return batch;
  }
};

}  // namespace onerec::cuda::kernels
