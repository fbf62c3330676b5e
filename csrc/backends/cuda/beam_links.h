// What the ops of beam search have in common when they hand their params to kernels.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backends/cuda/kernels/beam_score.cuh"
#include "ops/beam_search.h"

namespace onerec::cuda {

// What fits a row's share of shared memory.
inline constexpr std::int64_t kMaxCodebook = std::int64_t{1} << 20;

static_assert(kernels::kBeamLevels == kMaxLevels, "kernels and ops agree on the levels");

// A TrieTable is read in device memory: the kernels' view of a level is the level.
static_assert(sizeof(kernels::TrieEdges) == sizeof(TrieLevel) &&
                  offsetof(kernels::TrieEdges, row_ptr) == offsetof(TrieLevel, row_ptr) &&
                  offsetof(kernels::TrieEdges, code) == offsetof(TrieLevel, code) &&
                  offsetof(kernels::TrieEdges, item_begin) == offsetof(TrieLevel, item_begin),
              "the layouts agree");

// Level `level` of a table in device memory, null without a table; an address, nothing is read.
inline const kernels::TrieEdges* edges_of(const TrieTable* trie, int level) {
  if (trie == nullptr) return nullptr;
  const auto* bytes = reinterpret_cast<const std::byte*>(trie) + offsetof(TrieTable, level);
  return reinterpret_cast<const kernels::TrieEdges*>(bytes) + level;
}

template <class Params>
kernels::BeamLinks links_of(const Params& p) {
  kernels::BeamLinks links{};
  links.level = p.level;
  links.levels = p.levels;
  links.codes = p.current.codes;
  links.next_codes = p.next.codes;
  for (std::size_t s = 0; s < kMaxLevels; ++s) {
    links.ancestry[s] = p.current.ancestry[s];
    links.next_ancestry[s] = p.next.ancestry[s];
  }
  return links;
}

}  // namespace onerec::cuda
