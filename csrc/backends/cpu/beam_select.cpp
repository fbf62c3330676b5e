// Exact top-k in four parallel passes. (1) Every row's log-sum-exp and the best scores of a few groups of its
// candidates. (2) Per request, the width-th best of those group maxima: that many candidates are at least as good, so
// nothing below can survive. (3) Every part of a request's rows collects the candidates above the bound, cut back to
// the width whenever the pool is full, which tightens the bound. (4) Per request, the parts are joined, cut and sorted.
// The order of keys is total, so the parts do not show in the result.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>

#include "backends/cpu/beam_score.h"
#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/parallel.h"
#include "core/arena.h"

namespace onerec::cpu {
namespace {

// Group maxima per kept beam: with more the bound is tighter and takes longer to find.
constexpr std::int64_t kMaximaPerBeam = 8;

struct Scratch {
  std::int64_t parts;        // of a request's rows
  std::int64_t pool_size;    // keys that a thread collects: two widths, and room for one more row
  float* lse;                // [rows]; NaN: the row has no candidates
  float* best;               // [rows]: the largest score of a row
  float* maxima;             // see maxima_of()
  std::uint64_t* last;       // [batch]: no later key survives
  std::int64_t* part_count;  // [batch, parts]
  std::uint64_t* part_keys;  // [batch, parts, max_request_next]
  std::uint64_t* pool;       // [threads, pool_size]

  Scratch(Arena& arena, const BeamSelectParams& p, int threads)
      : parts(std::clamp<std::int64_t>(2 * threads / std::max<std::int64_t>(p.batch, 1), 1,
                                       std::max<std::int64_t>(p.max_request_rows, 1))),
        pool_size(2 * p.max_request_next + p.codebook),
        lse(arena.allocate_array<float>(p.rows_capacity)),
        best(arena.allocate_array<float>(p.rows_capacity)),
        maxima(arena.allocate_array<float>(2 * kMaximaPerBeam * p.next_capacity + 2 * p.rows_capacity)),
        last(arena.allocate_array<std::uint64_t>(p.batch)),
        part_count(arena.allocate_array<std::int64_t>(p.batch * parts)),
        part_keys(arena.allocate_array<std::uint64_t>(p.batch * parts * p.max_request_next)),
        pool(arena.allocate_array<std::uint64_t>(pool_size * threads)) {}
};

// One request, as it is when the op runs.
struct Request {
  std::int64_t index, first_row, rows, first_next, width, groups;
  const TrieLevel* trie;         // null: not constrained
  const std::uint32_t* blocked;  // this level's bits, or null

  Request(const BeamSelectParams& p, std::int64_t b)
      : index(b),
        first_row(p.row_offsets[b]),
        rows(p.row_offsets[b + 1] - first_row),
        first_next(p.next_offsets[b]),
        width(p.next_offsets[b + 1] - first_next),
        groups(groups_of(rows, width, p.codebook)),
        trie(p.trie != nullptr && p.constrained[b] != 0 ? &p.trie->level[static_cast<std::size_t>(p.level)] : nullptr),
        blocked(p.blocked == nullptr ? nullptr : p.blocked + b * p.words + p.word_offset) {}

  // A power of two with rows * groups < max(2 * kMaximaPerBeam * width, 2 * rows), which is what Scratch has room for;
  // 0: there are too few candidates for a bound.
  static std::int64_t groups_of(std::int64_t rows, std::int64_t width, std::int64_t codebook) {
    if (rows == 0) return 0;
    std::int64_t groups = 1;
    while (rows * groups < kMaximaPerBeam * width) groups *= 2;
    while (groups > 1 && groups > codebook / 4) groups /= 2;
    return rows * groups < width ? 0 : groups;
  }

  float* maxima_of(const Scratch& scratch, std::int64_t i) const {
    return scratch.maxima + 2 * kMaximaPerBeam * first_next + 2 * first_row + i * groups;
  }
  std::int64_t begin_of(std::int64_t part, std::int64_t parts) const { return rows * part / parts; }
};

// Calls visit(code, edge) for the legal continuations of a row of a constrained request.
template <class Visit>
void for_each_edge(const Request& request, std::int32_t state, Visit&& visit) {
  const TrieLevel& level = *request.trie;
  for (std::int32_t e = level.row_ptr[state]; e < level.row_ptr[state + 1]; ++e) {
    if (!is_blocked(request.blocked, e)) visit(level.code[e], e);
  }
}

// The best scores among the legal continuations of a row of a constrained request, dealt out to the groups in turn.
void edge_maxima(const BeamSelectParams& p, const Request& request, std::int64_t row, float lse, float* maxima) {
  const float* logits = p.logits.row<float>(row);
  std::fill_n(maxima, request.groups, -INFINITY);
  std::int64_t g = 0;
  for_each_edge(request, p.current.states[row], [&](std::int32_t code, std::int32_t) {
    maxima[g] = std::max(maxima[g], candidate_score(p.current.scores[row], logits[code], lse));
    g = (g + 1) & (request.groups - 1);
  });
}

// Pass 1 for row i of a request.
void score_row(const BeamSelectParams& p, const Scratch& scratch, const Request& request, std::int64_t i) {
  const std::int64_t row = request.first_row + i;
  const float* logits = p.logits.row<float>(row);
  const float cumulative = p.current.scores[row];
  float* maxima = request.maxima_of(scratch, i);
  scratch.lse[row] = NAN;

  float lse = NAN;
  if (p.current.states[row] >= 0) {
    const bool in_groups = request.trie == nullptr && request.groups > 0;
    float largest;
    largest = group_maxima(logits, p.codebook, in_groups ? request.groups : 1, in_groups ? maxima : &largest);
    lse = log_sum_exp(logits, p.codebook, largest);
    if (std::isfinite(lse) && cumulative < INFINITY) {
      scratch.lse[row] = lse;
      scratch.best[row] = candidate_score(cumulative, largest, lse);
    } else {
      // Rows of one request may lie in several threads; all of them store the same value.
      std::atomic_ref<std::int32_t>(p.status[request.index])
          .store(static_cast<std::int32_t>(BeamStatus::kNonFinite), std::memory_order_relaxed);
    }
  }

  if (request.groups == 0) return;
  if (std::isnan(scratch.lse[row])) {
    std::fill_n(maxima, request.groups, -INFINITY);
  } else if (request.trie != nullptr) {
    edge_maxima(p, request, row, lse, maxima);
  } else {
    for (std::int64_t g = 0; g < request.groups; ++g) maxima[g] = candidate_score(cumulative, maxima[g], lse);
  }
}

// Pass 2.
std::uint64_t bound_request(const Scratch& scratch, const Request& request) {
  if (request.groups == 0 || request.width == 0) return kLastKey;
  float* begin = request.maxima_of(scratch, 0);
  float* bound = begin + request.width - 1;
  std::nth_element(begin, bound, begin + request.rows * request.groups, std::greater<float>());
  return candidate_key(*bound, ~std::uint32_t{0});
}

// Pass 3 for one part: returns how many keys it leaves in `keys`, at most the request's width.
std::int64_t collect_part(const BeamSelectParams& p, const Scratch& scratch, const Request& request, std::int64_t part,
                          std::uint64_t* pool, std::uint64_t* keys) {
  if (request.width == 0) return 0;
  std::uint64_t last = scratch.last[request.index];
  std::int64_t count = 0;
  const auto cut = [&] {
    if (count <= request.width) return;
    std::nth_element(pool, pool + request.width - 1, pool + count);
    count = request.width;
    last = pool[request.width - 1];
  };

  const std::int64_t end = request.begin_of(part + 1, scratch.parts);
  for (std::int64_t i = request.begin_of(part, scratch.parts); i < end; ++i) {
    const std::int64_t row = request.first_row + i;
    const float lse = scratch.lse[row];
    const auto place = static_cast<std::uint32_t>(i * p.codebook);
    if (std::isnan(lse) || candidate_key(scratch.best[row], place) > last) continue;
    const float* logits = p.logits.row<float>(row);
    const float cumulative = p.current.scores[row];
    if (request.trie == nullptr) {
      count += append_candidates({logits, p.codebook, cumulative, lse, place, last}, pool + count);
    } else {
      for_each_edge(request, p.current.states[row], [&](std::int32_t code, std::int32_t) {
        const float score = candidate_score(cumulative, logits[code], lse);
        pool[count] = candidate_key(score, place + static_cast<std::uint32_t>(code));
        count += pool[count] <= last ? 1 : 0;
      });
    }
    if (count > 2 * request.width) cut();
  }
  cut();
  std::copy_n(pool, count, keys);
  return count;
}

// The trie node that a survivor stands on.
std::int32_t next_state(const Request& request, std::int32_t state, std::int32_t code) {
  if (request.trie == nullptr) return 0;
  const std::int32_t* codes = request.trie->code;
  const std::int32_t* end = codes + request.trie->row_ptr[state + 1];
  return static_cast<std::int32_t>(std::lower_bound(codes + request.trie->row_ptr[state], end, code) - codes);
}

// Pass 4.
void finish_request(const BeamSelectParams& p, const Scratch& scratch, const Request& request) {
  std::uint64_t* keys = scratch.part_keys + request.index * scratch.parts * p.max_request_next;
  std::int64_t count = 0;
  for (std::int64_t part = 0; part < scratch.parts; ++part) {
    const std::uint64_t* from = keys + part * p.max_request_next;
    const std::int64_t part_count = scratch.part_count[request.index * scratch.parts + part];
    std::memmove(keys + count, from, static_cast<std::size_t>(part_count) * sizeof(*keys));
    count += part_count;
  }
  if (count > request.width) {
    std::nth_element(keys, keys + request.width, keys + count);
    count = request.width;
  }
  std::sort(keys, keys + count);

  for (std::int64_t j = 0; j < request.width; ++j) {
    const std::int64_t next_row = request.first_next + j;
    if (j >= count) {
      extend_beam(p, request.rows > 0 ? request.first_row : -1, 0, next_row);
      p.next.scores[next_row] = -INFINITY;
      p.next.states[next_row] = -1;
      continue;
    }
    const auto place = static_cast<std::uint32_t>(keys[j]);
    const std::int64_t parent = request.first_row + place / static_cast<std::uint32_t>(p.codebook);
    const auto code = static_cast<std::int32_t>(place % static_cast<std::uint32_t>(p.codebook));
    extend_beam(p, parent, code, next_row);
    p.next.scores[next_row] = score_of(keys[j]);
    p.next.states[next_row] = next_state(request, p.current.states[parent], code);
  }
}

void select(const BeamSelectParams& p, const Scratch& scratch) {
  if (p.batch == 0) return;
  const std::int64_t parts = scratch.parts;
  const int threads = threads_for(p.row_offsets[p.batch] * p.codebook, kElementsPerThread);
  for_tasks(threads, p.batch * parts, [&](int, std::int64_t task) {
    const Request request(p, task / parts);
    const std::int64_t end = request.begin_of(task % parts + 1, parts);
    for (std::int64_t i = request.begin_of(task % parts, parts); i < end; ++i) score_row(p, scratch, request, i);
  });
  for_tasks(threads, p.batch, [&](int, std::int64_t b) { scratch.last[b] = bound_request(scratch, Request(p, b)); });
  for_tasks(threads, p.batch * parts, [&](int rank, std::int64_t task) {
    std::uint64_t* pool = scratch.pool + rank * scratch.pool_size;
    std::uint64_t* keys = scratch.part_keys + task * p.max_request_next;
    scratch.part_count[task] = collect_part(p, scratch, Request(p, task / parts), task % parts, pool, keys);
  });
  for_tasks(threads, p.batch, [&](int, std::int64_t b) { finish_request(p, scratch, Request(p, b)); });
}

}  // namespace

std::size_t CpuBackend::beam_select_workspace(const BeamSelectParams& params) const {
  Arena arena;
  Scratch(arena, params, device_.threads());
  return arena.used();
}

void CpuBackend::beam_select(Stream& stream, const BeamSelectParams& params, Workspace workspace) {
  Arena arena(workspace.data, workspace.bytes);
  const Scratch scratch(arena, params, device_.threads());
  submit(stream, [p = params, scratch] { select(p, scratch); });
}

}  // namespace onerec::cpu
