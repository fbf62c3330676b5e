// trie_filter: a block owns some words of one request and level, gathers their bits in shared memory and writes them
// all.
#pragma once

#include "backends/cuda/kernels/beam_score.cuh"
#include "backends/cuda/kernels/grid_dependency.cuh"

namespace onerec::cuda::kernels {

inline constexpr int kFilterThreads = 256;
inline constexpr int kFilterWords = 2048;  // of a block

struct FilterParams {
  const TrieEdges* levels;
  const std::int32_t* edges;  // [levels]
  const std::int32_t* excluded;
  const std::int32_t* excluded_offsets;  // [batch + 1]
  std::uint32_t* blocked;                // out [batch, words]
  std::int64_t words;
  std::int64_t word_begin[kBeamLevels + 1];  // the words that are written for a level, one behind the other; all words
  std::int64_t word_offset[kBeamLevels];     // the word of a level's edge 0
  std::uint32_t first_block[kBeamLevels + 1];  // the blocks of a level
};

// The first i in [begin, end) with values[i] >= wanted, or end.
__device__ __forceinline__ std::int64_t first_at_least(const std::int32_t* values, std::int64_t begin, std::int64_t end,
                                                       std::int32_t wanted) {
  while (begin < end) {
    const std::int64_t middle = begin + (end - begin) / 2;
    if (values[middle] < wanted) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

// Sets the bits of the blocked ones among the edges [first, last) of a level; bit 0 is edge `first`. An edge of n items
// is blocked if the n excluded positions from its first item on are its items.
__device__ __forceinline__ void mark_blocked(const std::int32_t* item_begin, std::int64_t first, std::int64_t last,
                                             const std::int32_t* excluded, std::int64_t count, std::uint32_t* bits) {
  const std::int32_t last_item = item_begin[last];
  const std::int64_t begin = first_at_least(excluded, 0, count, item_begin[first]);
  for (std::int64_t i = begin + threadIdx.x; i < count; i += blockDim.x) {
    const std::int32_t position = excluded[i];
    if (position >= last_item) break;
    const std::int64_t e = first_at_least(item_begin, first, last, position);
    if (e == last || item_begin[e] != position) continue;
    const std::int64_t end = i + (item_begin[e + 1] - position);
    if (end > count || excluded[end - 1] != item_begin[e + 1] - 1) continue;
    atomicOr(&bits[(e - first) / 32], 1u << ((e - first) % 32));
  }
}

static __global__ void __launch_bounds__(kFilterThreads) trie_filter_kernel(FilterParams p) {
  overlap_with_neighbours();
  __shared__ std::uint32_t bits[kFilterWords];
  int level = 0;
  while (blockIdx.x >= p.first_block[level + 1]) ++level;
  const std::int64_t begin = p.word_begin[level] + std::int64_t{blockIdx.x - p.first_block[level]} * kFilterWords;
  const std::int64_t end = min(begin + kFilterWords, p.word_begin[level + 1]);
  for (int i = static_cast<int>(threadIdx.x); i < kFilterWords; i += kFilterThreads) bits[i] = 0;
  __syncthreads();

  const std::int64_t b = blockIdx.y;
  const std::int32_t excluded_begin = p.excluded_offsets[b];
  const std::int32_t excluded_count = p.excluded_offsets[b + 1] - excluded_begin;
  const std::int64_t first_word = max(begin, p.word_offset[level]);
  const std::int64_t first_edge = (first_word - p.word_offset[level]) * 32;
  if (excluded_count > 0 && first_word < end) {
    const std::int64_t last_edge = min(std::int64_t{p.edges[level]}, first_edge + (end - first_word) * 32);
    if (first_edge < last_edge) {
      mark_blocked(p.levels[level].item_begin, first_edge, last_edge, p.excluded + excluded_begin, excluded_count,
                   bits + (first_word - begin));
    }
  }
  __syncthreads();
  std::uint32_t* blocked = p.blocked + b * p.words;
  for (std::int64_t w = begin + threadIdx.x; w < end; w += kFilterThreads) blocked[w] = bits[w - begin];
}

}  // namespace onerec::cuda::kernels
