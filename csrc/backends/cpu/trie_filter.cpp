#include <algorithm>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/parallel.h"
#include "ops/beam_search.h"

namespace onerec::cpu {
namespace {

// Walks the excluded positions [first, last) of one request along one level: positions under the same edge are
// neighbours, and an edge with as many excluded items as items is blocked.
void block_edges(const TrieLevel& level, std::int32_t edges, const std::int32_t* first, const std::int32_t* last,
                 std::uint32_t* blocked) {
  const std::int32_t* begin = level.item_begin;
  const std::int32_t* end = level.item_begin + edges + 1;
  while (first != last) {
    // The last edge that begins at or before this position; positions ascend, so the search goes on from there.
    const std::int32_t* edge = std::upper_bound(begin, end, *first) - 1;
    if (edge + 1 >= end) return;
    const std::int32_t* behind = std::lower_bound(first, last, edge[1]);
    if (behind - first == edge[1] - edge[0]) {
      const std::int64_t e = edge - level.item_begin;
      blocked[e / 32] |= std::uint32_t{1} << (e % 32);
    }
    first = behind;
    begin = edge + 1;
  }
}

}  // namespace

void CpuBackend::trie_filter(Stream& stream, const TrieFilterParams& params) {
  submit(stream, [p = params] {
    if (p.batch == 0) return;
    const int threads = threads_for(p.batch * p.words + 64 * p.excluded_offsets[p.batch], kElementsPerThread);
    for_tasks(threads, p.batch, [&](int, std::int64_t b) {
      std::uint32_t* blocked = p.blocked + b * p.words;
      std::fill_n(blocked, p.words, 0u);
      for (int t = 0; t < p.levels; ++t) {
        block_edges(p.trie->level[t], p.trie->edges[t], p.excluded + p.excluded_offsets[b],
                    p.excluded + p.excluded_offsets[b + 1], blocked + p.word_offset[t]);
      }
    });
  });
}

}  // namespace onerec::cpu
