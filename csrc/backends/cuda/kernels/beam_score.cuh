// The arithmetic of beam search on rows of logits, the order of candidates, and the history of a beam.
#pragma once

#include "backends/cuda/kernels/block.cuh"

namespace onerec::cuda::kernels {

// --- the order of candidates ---

// Descending keys are descending scores; -0 counts as +0. Never 0, which stands for "no candidate".
__device__ __forceinline__ std::uint32_t score_key(float score) {
  const auto bits = bits_as<std::uint32_t>(score + 0.0f);
  return bits ^ ((bits >> 31) != 0 ? 0xffffffffu : 0x80000000u);
}

__device__ __forceinline__ float score_of(std::uint32_t key) {
  return bits_as<float>(key ^ ((key >> 31) != 0 ? 0x80000000u : 0xffffffffu));
}

// Descending keys are descending scores and, within a score, ascending places. Keys of different places differ.
__device__ __forceinline__ std::uint64_t ranked_key(std::uint32_t score, std::uint32_t place) {
  return static_cast<std::uint64_t>(score) << 32 | ~place;
}

__device__ __forceinline__ std::uint32_t score_part(std::uint64_t key) { return static_cast<std::uint32_t>(key >> 32); }
__device__ __forceinline__ std::uint32_t place_part(std::uint64_t key) { return ~static_cast<std::uint32_t>(key); }

// A candidate's score. The rounding is part of the contract: the logarithm of the probability first, then the sum.
__device__ __forceinline__ float candidate_score(float cumulative, float logit, float lse) {
  return cumulative + (logit - lse);
}

// --- the log-sum-exp of a row ---

// Loads of four codes that a thread has in flight.
inline constexpr int kRowLoads = 8;
inline constexpr int kRowThreads = 512;

// Threads that share a row: chosen by the codebook alone, so that a row's log-sum-exp does not depend on its batch.
constexpr int row_threads(std::int64_t codebook) {
  int threads = kWarp;
  while (threads < (codebook <= 8192 ? 256 : kRowThreads) && threads * 4 * kRowLoads < codebook) threads *= 2;
  return threads;
}

// sum exp(logit - largest) over the logits seen so far. A NaN is never the largest, and makes the sum NaN.
struct RowSum {
  float largest = -INFINITY;
  float sum = 0.0f;

  // exp(x - reference()) is 0 for x = -inf even while nothing else has been seen.
  __device__ __forceinline__ float reference() const { return largest == -INFINITY ? 0.0f : largest; }

  __device__ __forceinline__ void raise_to(float value) {
    const float before = largest;
    largest = fmaxf(largest, value);
    sum *= expf(before - reference());
  }
};

// codes [c, c + 4) of a row, -inf behind its end.
__device__ __forceinline__ float4 load_four_codes(const float* row, int c, int codebook) {
  return make_float4(c < codebook ? row[c] : -INFINITY, c + 1 < codebook ? row[c + 1] : -INFINITY,
                     c + 2 < codebook ? row[c + 2] : -INFINITY, c + 3 < codebook ? row[c + 3] : -INFINITY);
}

// The log-sum-exp of a row, for every thread of the block. Not finite if a logit is NaN or +inf, or all are -inf.
// `visit(base, largest)`, which all threads call, gets in largest[k] the largest of the four codes from base + 4 *
// (threadIdx.x + k * blockDim.x) on, -inf behind the end of the row; it may overwrite the array. `scratch`: kWarp
// elements of shared memory. Holds a barrier behind the visits.
template <class Visit>
__device__ __forceinline__ float row_log_sum_exp(const float* row, int codebook, float2* scratch, Visit visit) {
  const bool aligned = reinterpret_cast<std::uintptr_t>(row) % 16 == 0;
  const int threads = static_cast<int>(blockDim.x);
  RowSum total;
  for (int base = 0; base < codebook; base += threads * 4 * kRowLoads) {
    float4 four[kRowLoads];
    const int first = base + 4 * static_cast<int>(threadIdx.x);
    if (aligned && base + threads * 4 * kRowLoads <= codebook) {
#pragma unroll
      for (int k = 0; k < kRowLoads; ++k) four[k] = *reinterpret_cast<const float4*>(row + first + k * threads * 4);
    } else {
#pragma unroll
      for (int k = 0; k < kRowLoads; ++k) four[k] = load_four_codes(row, first + k * threads * 4, codebook);
    }
    float largest[kRowLoads];
    float largest_of_all = -INFINITY;
#pragma unroll
    for (int k = 0; k < kRowLoads; ++k) {
      largest[k] = fmaxf(fmaxf(four[k].x, four[k].y), fmaxf(four[k].z, four[k].w));
      largest_of_all = fmaxf(largest_of_all, largest[k]);
    }
    visit(base, largest);
    total.raise_to(largest_of_all);
    const float reference = total.reference();
#pragma unroll
    for (int k = 0; k < kRowLoads; ++k) {
      total.sum += (expf(four[k].x - reference) + expf(four[k].y - reference)) +
                   (expf(four[k].z - reference) + expf(four[k].w - reference));
    }
  }

  total.raise_to(warp_max(total.largest));
  total.sum = warp_sum(total.sum);
  if (lane_index() == 0) scratch[warp_index()] = make_float2(total.largest, total.sum);
  __syncthreads();
  RowSum part;
  if (lane_index() < threads / kWarp) {
    part.largest = scratch[lane_index()].x;
    part.sum = scratch[lane_index()].y;
  }
  part.raise_to(warp_max(part.largest));
  return part.largest + logf(warp_sum(part.sum));
}

// --- requests and beams ---

// The thread that finds the request of a row writes it to `request`, in shared memory.
__device__ __forceinline__ void find_request(const std::int32_t* row_offsets, std::int64_t batch, std::int64_t row,
                                             std::int32_t* request) {
  for (std::int64_t b = threadIdx.x; b < batch; b += blockDim.x) {
    const std::int32_t begin = row_offsets[b];
    const std::int32_t end = row_offsets[b + 1];
    if (begin <= row && row < end) *request = static_cast<std::int32_t>(b);
  }
}

inline constexpr int kBeamLevels = 8;

// What a beam takes over from the one that it continues.
struct BeamLinks {
  int level;
  int levels;
  const std::int32_t* codes;  // [rows, levels]
  std::int32_t* next_codes;
  const std::int32_t* ancestry[kBeamLevels];  // [step][rows]; null: not kept
  std::int32_t* next_ancestry[kBeamLevels];
};

// Row `next_row` becomes the continuation of row `parent` (-1: there is none) by `code`.
__device__ __forceinline__ void extend_beam(const BeamLinks& links, std::int64_t parent, std::int32_t code,
                                            std::int64_t next_row) {
  // All loads come first, so that they do not wait for each other behind the stores.
  std::int32_t codes[kBeamLevels];
  std::int32_t from[kBeamLevels];
#pragma unroll
  for (int s = 0; s < kBeamLevels; ++s) {
    const bool earlier = s < links.level && parent >= 0;
    codes[s] = earlier ? links.codes[parent * links.levels + s] : 0;
    from[s] = earlier && links.ancestry[s] != nullptr ? links.ancestry[s][parent] : 0;
  }
  std::int32_t* to = links.next_codes + next_row * links.levels;
#pragma unroll
  for (int s = 0; s < kBeamLevels; ++s) {
    const bool last = s == links.level;
    if (s <= links.level) to[s] = last ? code : codes[s];
    if (s > links.level || links.next_ancestry[s] == nullptr || (!last && links.ancestry[s] == nullptr)) continue;
    const std::int32_t itself = parent < 0 ? 0 : static_cast<std::int32_t>(parent);
    links.next_ancestry[s][next_row] = last ? itself : from[s];
  }
}

// A level of the trie, as ops/beam_search.h has it.
struct TrieEdges {
  const std::int32_t* row_ptr;
  const std::int32_t* code;
  const std::int32_t* item_begin;
};

// Whether edge e of a level is blocked, `blocked` being the level's bits of the request or null.
__device__ __forceinline__ bool is_blocked(const std::uint32_t* blocked, std::int32_t e) {
  return blocked != nullptr && (blocked[e / 32] >> (e % 32) & 1u) != 0;
}

}  // namespace onerec::cuda::kernels
