// The host side of one run: what is searched for, and what was found.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "model/model.h"

namespace onerec {

// Tokens of one context pathway, packed over the requests; null where the pathway has no such input.
struct PathwayBatch {
  std::int64_t tokens = 0;
  const std::int32_t* codes = nullptr;        // [tokens, levels]
  const std::int32_t* positions = nullptr;    // [tokens]
  const std::int32_t* rows = nullptr;         // [tokens]: place in the packed context
  const std::int32_t* categorical = nullptr;  // [tokens, categorical fields]
  const float* dense = nullptr;               // [tokens, dense columns]
};

// Non-owning arrays of the caller's.
struct Batch {
  std::int64_t size = 0;
  std::vector<PathwayBatch> pathways;
  const std::int32_t* context_offsets = nullptr;   // [size + 1]: a request's tokens in the packed context
  const std::int32_t* widths = nullptr;            // [size, levels]: beams kept after each level
  const std::uint8_t* constrained = nullptr;       // [size]
  const std::int32_t* excluded = nullptr;          // trie positions, ascending and distinct per request
  const std::int32_t* excluded_offsets = nullptr;  // [size + 1]
  const std::int32_t* forced = nullptr;            // null, or [rows, levels]: score these codes instead of searching

  std::int64_t context_tokens() const { return context_offsets[size]; }
  std::int64_t num_excluded() const { return excluded_offsets[size]; }
};

// In rank order per request: request b has the rows [offsets[b], offsets[b + 1]).
struct BatchResult {
  std::vector<std::int32_t> offsets;
  std::vector<float> scores;         // summed log-probabilities; -inf: a dead beam
  std::vector<std::int32_t> codes;   // [rows, levels]
  std::vector<std::int32_t> leaves;  // leaf of the catalogue's trie; -1: a dead beam; 0 for unconstrained requests
  std::vector<std::int32_t> status;  // BeamStatus per request
  bool repeated = false;             // the search was done a second time: PassInputs::overflowed
};

// The sizes that a batch is checked against.
struct BatchLimits {
  std::int64_t max_batch = 0;
  std::int64_t max_rows = 0;            // of one step over the batch
  std::int64_t max_context_tokens = 0;  // over the batch
  std::int64_t max_excluded = 0;        // over the batch
};

// Checks every index that an op will follow. `items`: of the catalogue, 0 if none is set. Throws ArgumentError naming
// the array and the request.
void check_batch(const Batch& batch, const InputSchema& schema, std::int64_t items, const BatchLimits& limits);

}  // namespace onerec
