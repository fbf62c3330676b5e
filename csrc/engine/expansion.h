// From the beams of a run to items.
#pragma once

#include <cstdint>

#include "engine/item_index.h"

namespace onerec {

// Where a semantic id has no item: the item of its result.
inline constexpr std::int64_t kNoItem = -1;

// The beams of `size` requests after the last level, best first within a request, and what is wanted of them.
// Non-owning arrays of the caller's.
struct RunBeams {
  std::int64_t size = 0;
  const std::int32_t* offsets = nullptr;           // [size + 1]: request b has the rows [offsets[b], offsets[b + 1])
  const float* scores = nullptr;                   // [rows]; -inf: a dead beam
  const std::int32_t* codes = nullptr;             // [rows, levels]
  const std::int32_t* leaves = nullptr;            // [rows]; -1: a dead beam; any other number where not constrained
  const std::uint8_t* constrained = nullptr;       // [size]
  const std::int32_t* excluded = nullptr;          // trie positions, ascending within a request
  const std::int32_t* excluded_offsets = nullptr;  // [size + 1]
  const std::int64_t* num_results = nullptr;       // [size]
};

// The results of the requests one behind the other, in arrays of the caller's with room for max_results(beams).
struct RunItems {
  std::int64_t* items = nullptr;         // ids; kNoItem
  std::int32_t* semantic_ids = nullptr;  // [results, levels]
  float* logprobs = nullptr;
  bool* legal = nullptr;            // whether an item has the semantic id
  std::int64_t* offsets = nullptr;  // [size + 1]: request b has the results [offsets[b], offsets[b + 1])
};

// The results if every request has as many as are wanted.
std::int64_t max_results(const RunBeams& beams);

// The items of each request's beams, in the beams' order; those of one semantic id by ascending id; without excluded
// ones; at most num_results. A beam of an unconstrained search that no item has stays, as kNoItem. No more
// beams are looked up than results are still wanted. Throws InternalError for a leaf that the index does not have.
void expand(const RunBeams& beams, const ItemIndex& index, const RunItems& out);

}  // namespace onerec
