#include "backends/cuda/beam_links.h"
#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/kernels/trie_filter.cuh"
#include "backends/cuda/launch.h"

namespace onerec::cuda {

void CudaBackend::trie_filter(Stream& stream, const TrieFilterParams& params) {
  if (params.batch == 0) return;
  const auto* table = reinterpret_cast<const std::byte*>(params.trie);
  kernels::FilterParams filter{};
  filter.levels = edges_of(params.trie, 0);
  filter.edges = reinterpret_cast<const std::int32_t*>(table + offsetof(TrieTable, edges));
  filter.excluded = params.excluded;
  filter.excluded_offsets = params.excluded_offsets;
  filter.blocked = params.blocked;
  filter.words = params.words;
  // Every level's words reach up to the next level's, the first level's begin at 0: all words get written.
  for (int t = 0; t < params.levels; ++t) {
    const auto level = static_cast<std::size_t>(t);
    const std::int64_t end = t + 1 < params.levels ? params.word_offset[level + 1] : params.words;
    filter.word_offset[t] = params.word_offset[level];
    filter.word_begin[t + 1] = end;
    filter.first_block[t + 1] = filter.first_block[t] + blocks_for(end - filter.word_begin[t], kernels::kFilterWords);
  }
  launch(stream, "trie_filter", kernels::trie_filter_kernel,
         {dim3(filter.first_block[params.levels], static_cast<unsigned>(params.batch)), dim3(kernels::kFilterThreads)},
         filter);
}

}  // namespace onerec::cuda
