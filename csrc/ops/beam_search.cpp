#include "ops/beam_search.h"

#include <limits>

#include "core/error.h"
#include "ops/backend.h"
#include "ops/checks.h"

namespace onerec {
namespace {

void check_level(const char* op, int level, int levels) {
  require(levels >= 1 && levels <= kMaxLevels, "[", op, "] got ", levels, " levels, want 1 to ", kMaxLevels,
          ". Shorten the semantic id.");
  require(level >= 0 && level < levels, "[", op, "] got level ", level, ", want 0 to ", levels - 1,
          ". Correct the step.");
}

void check_beams(const char* op, const BeamState& beams, int steps, std::int64_t capacity) {
  if (capacity == 0) return;
  check_pointer(op, "beam scores", beams.scores);
  check_pointer(op, "beam states", beams.states);
  check_pointer(op, "beam codes", beams.codes);
  for (int s = 0; s < steps; ++s) check_pointer(op, "beam ancestry", beams.ancestry[static_cast<std::size_t>(s)]);
}

// What beam_select and beam_force have in common.
template <class Params>
void check_search(const char* op, const Params& params) {
  check_level(op, params.level, params.levels);
  check_at_least(op, "batch", params.batch, 0);
  check_at_least(op, "rows_capacity", params.rows_capacity, 0);
  check_at_least(op, "next_capacity", params.next_capacity, 0);
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  require(params.codebook >= 1 && params.codebook <= kMost, "[", op, "] got a codebook of ", params.codebook,
          " codes, want 1 to ", kMost, ". Correct the configuration.");
  // The logits may be padded: more columns than codes.
  check_at_least(op, "columns of logits", params.logits.cols, params.codebook);
  check_matrix(op, "logits", params.logits, {DType::kF32}, params.rows_capacity, params.logits.cols);
  check_pointer(op, "row_offsets", params.row_offsets);
  check_pointer(op, "next_offsets", params.next_offsets);
  check_pointer(op, "status", params.status);
  // Behind the last level there is no decoder step that would read an ancestry.
  const bool last = params.level + 1 == params.levels;
  check_beams(op, params.current, last ? 0 : params.level, params.rows_capacity);
  check_beams(op, params.next, last ? 0 : params.level + 1, params.next_capacity);
}

}  // namespace

void trie_filter(OpContext& context, const TrieFilterParams& params) {
  constexpr const char* kOp = "trie_filter";
  check_level(kOp, 0, params.levels);
  check_at_least(kOp, "batch", params.batch, 0);
  check_at_least(kOp, "words", params.words, 0);
  std::int64_t begin = 0;
  for (int t = 0; t < params.levels; ++t) {
    const std::int64_t offset = params.word_offset[static_cast<std::size_t>(t)];
    require(offset >= begin && offset <= params.words, "[trie_filter] got word_offset ", offset, " for level ", t,
            ", want an ascending offset within ", params.words, " words. Lay the levels out one behind the other.");
    begin = offset;
  }
  if (params.batch > 0) {
    check_pointer(kOp, "trie", params.trie);
    check_pointer(kOp, "excluded_offsets", params.excluded_offsets);
    if (params.words > 0) check_pointer(kOp, "blocked", params.blocked);
  }

  if (!workspace_ready(context, kOp, 0)) return;
  context.backend.trie_filter(context.stream, params);
}

void beam_select(OpContext& context, const BeamSelectParams& params) {
  constexpr const char* kOp = "beam_select";
  check_search(kOp, params);
  check_at_least(kOp, "max_request_rows", params.max_request_rows, 0);
  check_at_least(kOp, "max_request_next", params.max_request_next, 0);
  // A candidate's place in the order, row * codebook + code, is the lower half of its key.
  require(params.max_request_rows <= (std::int64_t{1} << 32) / params.codebook, "[beam_select] got ",
          params.max_request_rows, " beams over ", params.codebook,
          " codes, want a product of at most 2^32. Lower beam_width.");
  if (params.trie != nullptr) check_pointer(kOp, "constrained", params.constrained);
  if (params.blocked != nullptr) {
    require(params.word_offset >= 0 && params.word_offset <= params.words, "[beam_select] got word_offset ",
            params.word_offset, ", want 0 to ", params.words, ", the words of a request. Pass trie_filter's layout.");
  }

  Backend& backend = context.backend;
  if (!workspace_ready(context, kOp, backend.beam_select_workspace(params))) return;
  backend.beam_select(context.stream, params, context.workspace);
}

void beam_force(OpContext& context, const BeamForceParams& params) {
  constexpr const char* kOp = "beam_force";
  check_search(kOp, params);
  if (params.next_capacity > 0) check_pointer(kOp, "forced", params.forced);

  Backend& backend = context.backend;
  if (!workspace_ready(context, kOp, backend.beam_force_workspace(params))) return;
  backend.beam_force(context.stream, params, context.workspace);
}

}  // namespace onerec
