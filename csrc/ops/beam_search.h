// One level of beam search: log-sum-exp, legality, exact top-k, and the bookkeeping of the beams that survive.
#pragma once

#include <array>

#include "ops/context.h"
#include "ops/self_attention.h"

namespace onerec {

// A catalogue level of the trie in compressed sparse rows. Node s of this level has the edges [row_ptr[s], row_ptr[s +
// 1]); an edge's index is the node it leads to at the next level. Codes ascend within a node. Node 0 of level 0 is the
// root.
struct TrieLevel {
  const std::int32_t* row_ptr = nullptr;  // [nodes + 1]
  const std::int32_t* code = nullptr;     // [edges]
  const std::int32_t* item_begin =
      nullptr;  // [edges + 1]: the items (in trie order) under an edge are [item_begin[e], item_begin[e + 1])
};

// Lies in device memory, so that a catalogue can be swapped without a new recording.
struct TrieTable {
  std::int32_t levels = 0;
  std::array<TrieLevel, kMaxLevels> level = {};
  std::array<std::int32_t, kMaxLevels> edges = {};
};

// Marks the edges under which every item is excluded. `excluded` holds item positions in trie order, ascending and
// distinct per request. Bit e of blocked[b * words + word_offset[t]] ... is set for a blocked edge e of level t; all
// other bits are cleared.
struct TrieFilterParams {
  const TrieTable* trie = nullptr;  // device
  int levels = 0;
  const std::int32_t* excluded = nullptr;          // [capacity], device
  const std::int32_t* excluded_offsets = nullptr;  // [batch + 1], device
  std::int64_t batch = 0;
  std::uint32_t* blocked = nullptr;  // [batch, words], out
  std::int64_t words = 0;
  std::array<std::int64_t, kMaxLevels> word_offset = {};
};

void trie_filter(OpContext& context, const TrieFilterParams& params);

// The beams before or after a level. A dead beam has score -inf and state -1.
struct BeamState {
  float* scores = nullptr;                              // [rows]
  std::int32_t* states = nullptr;                       // [rows]: trie node, 0 where the request is not constrained
  std::int32_t* codes = nullptr;                        // [rows, levels]: the codes chosen so far
  std::array<std::int32_t*, kMaxLevels> ancestry = {};  // [step][rows]: this beam's row at that earlier step
};

// What a request's result is worth; written per request, only ever raised.
enum class BeamStatus : std::int32_t { kOk = 0, kNonFinite = 1 };

// For request b with rows [row_offsets[b], row_offsets[b + 1]) of this level and [next_offsets[b], next_offsets[b + 1])
// behind it: the candidates (row, code) of every live row, score cum + (logit - lse), lse over all `codebook` logits of
// the row. Constrained requests take only the codes of the edges of the row's trie node that are not blocked. The best
// next_offsets[b + 1] - next_offsets[b] go to `next` in the order: larger score, smaller row, smaller code; -0 counts
// as +0. Missing ones are dead: score -inf, state -1, code 0, parent the request's first row. codes and ancestry of a
// survivor are its parent's plus the new code and the parent's row. A row whose log-sum-exp is not finite has no
// candidates and raises the request's status.
struct BeamSelectParams {
  int level = 0;
  int levels = 0;
  ConstMatrix logits = {};  // [rows, >= codebook], FP32
  std::int64_t codebook = 0;
  std::int64_t batch = 0;
  std::int64_t rows_capacity = 0;
  std::int64_t next_capacity = 0;
  std::int64_t max_request_rows = 0;
  std::int64_t max_request_next = 0;
  const std::int32_t* row_offsets = nullptr;   // [batch + 1], device
  const std::int32_t* next_offsets = nullptr;  // [batch + 1], device
  const std::uint8_t* constrained = nullptr;   // [batch], device
  const TrieTable* trie = nullptr;             // device; null: no request is constrained
  const std::uint32_t* blocked = nullptr;      // see TrieFilterParams; null: nothing is excluded
  std::int64_t words = 0;
  std::int64_t word_offset = 0;  // of this level
  BeamState current = {};
  BeamState next = {};
  std::int32_t* status = nullptr;  // [batch], device
};

void beam_select(OpContext& context, const BeamSelectParams& params);

// Follows given codes instead of choosing: row i of `next` of request b continues row row_offsets[b] (level 0) or
// row_offsets[b] + i with forced[next row, level], whose log-probability is added. States stay 0. A row whose parent is
// dead, or whose log-sum-exp is not finite, is dead (score -inf, state -1) but keeps its code and ancestry.
struct BeamForceParams {
  int level = 0;
  int levels = 0;
  ConstMatrix logits = {};
  std::int64_t codebook = 0;
  std::int64_t batch = 0;
  std::int64_t rows_capacity = 0;
  std::int64_t next_capacity = 0;
  const std::int32_t* row_offsets = nullptr;
  const std::int32_t* next_offsets = nullptr;
  const std::int32_t* forced = nullptr;  // [next rows, levels], device; codes are checked by the caller
  BeamState current = {};
  BeamState next = {};
  std::int32_t* status = nullptr;
};

void beam_force(OpContext& context, const BeamForceParams& params);

}  // namespace onerec
