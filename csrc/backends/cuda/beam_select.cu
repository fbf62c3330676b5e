#include <algorithm>
#include <limits>

#include "backends/cuda/beam_links.h"
#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/kernels/beam_select.cuh"
#include "backends/cuda/kernels/beam_select_rows.cuh"
#include "backends/cuda/launch.h"
#include "core/arena.h"
#include "core/error.h"

namespace onerec::cuda {
namespace {

constexpr const char* kOp = "beam_select";
// What shared memory has room for: a row's slots, and the lists of keys.
constexpr std::int64_t kMaxSlots = std::int64_t{1} << 15;
constexpr std::int64_t kMaxWidth = 4096;

std::int64_t power_of_two_from(std::int64_t value) {
  std::int64_t power = 1;
  while (power < value) power *= 2;
  return power;
}

// Large groups are few, small ones hold little that has to be looked at: with rows * codebook / group groups of which
// `width` are looked at, the square of a group is the candidates per survivor.
kernels::RowLayout layout_of(const BeamSelectParams& p) {
  const std::int64_t width = std::max<std::int64_t>(p.max_request_next, 1);
  const std::int64_t candidates = std::max<std::int64_t>(p.max_request_rows, 1) * p.codebook;
  std::int64_t group = 4;
  while (group < kernels::kMaxGroupCodes && (group * group * width < candidates || group * kMaxSlots < p.codebook)) {
    group *= 2;
  }
  const std::int64_t groups = (p.codebook + group - 1) / group;
  constexpr std::int64_t kBlock = kernels::kSlotsPerBlock;
  return {.codebook = static_cast<int>(p.codebook),
          .group_codes = static_cast<int>(group),
          .groups = static_cast<int>(groups),
          .slots = static_cast<int>((groups + kBlock - 1) / kBlock * kBlock)};
}

// With room to spare, so that a bound rarely has to be raised.
std::int64_t capacity_of(const BeamSelectParams& p) {
  const std::int64_t width = power_of_two_from(p.max_request_next);
  return std::max<std::int64_t>(width <= 2048 ? 4 * width : 2 * width, 2048);
}

// More threads than this would wait for each other longer than they work. The results do not depend on it.
int select_threads(const BeamSelectParams& p, const kernels::RowLayout& layout) {
  constexpr std::int64_t kMuchWork = 30000;  // 512 threads take less time up to 18,496, more from 36,864 on
  const std::int64_t blocks = p.max_request_rows * (layout.slots / kernels::kSlotsPerBlock);
  const std::int64_t work = blocks + p.max_request_next * (kernels::kSlotsPerBlock + layout.group_codes);
  const std::int64_t most = work < kMuchWork ? kernels::kSelectThreads / 2 : kernels::kSelectThreads;
  return static_cast<int>(std::clamp<std::int64_t>(power_of_two_from(work / 8), 128, most));
}

struct Scratch {
  kernels::RowTerms* terms;
  std::uint32_t* slot_keys;
  std::uint32_t* block_keys;

  Scratch(Arena& arena, const BeamSelectParams& p, const kernels::RowLayout& layout)
      : terms(arena.allocate_array<kernels::RowTerms>(p.rows_capacity)),
        slot_keys(arena.allocate_array<std::uint32_t>(p.rows_capacity * layout.slots)),
        block_keys(arena.allocate_array<std::uint32_t>(p.rows_capacity * (layout.slots / kernels::kSlotsPerBlock))) {}
};

template <int kGroupCodes>
void select_rows(Stream& stream, const kernels::SelectRowsParams& params, std::int64_t rows) {
  launch(stream, kOp, kernels::select_rows_kernel<kGroupCodes>,
         {dim3(static_cast<unsigned>(rows)), dim3(static_cast<unsigned>(kernels::row_threads(params.layout.codebook))),
          static_cast<std::size_t>(params.layout.slots) * sizeof(std::uint32_t)},
         params);
}

}  // namespace

std::size_t CudaBackend::beam_select_workspace(const BeamSelectParams& params) const {
  require(params.codebook <= kMaxCodebook, "[beam_select] got a codebook of ", params.codebook, " codes, want at most ",
          kMaxCodebook, " on this device. Use device 'cpu'.");
  require(params.max_request_next <= kMaxWidth, "[beam_select] got ", params.max_request_next,
          " beams of a request, want at most ", kMaxWidth, " on this device. Lower beam_width.");
  const kernels::RowLayout layout = layout_of(params);
  require(params.max_request_rows * layout.slots <= std::numeric_limits<std::uint32_t>::max() &&
              params.rows_capacity <= std::numeric_limits<std::int32_t>::max(),
          "[beam_select] got ", params.max_request_rows, " beams of a request and ", params.rows_capacity,
          " in all, want fewer. Lower beam_width or the batch.");
  Arena arena;
  Scratch(arena, params, layout);
  return arena.used();
}

void CudaBackend::beam_select(Stream& stream, const BeamSelectParams& params, Workspace workspace) {
  if (params.batch == 0) return;
  const kernels::RowLayout layout = layout_of(params);
  Arena arena(workspace.data, workspace.bytes);
  const Scratch scratch(arena, params, layout);
  const std::uint8_t* constrained = params.trie == nullptr ? nullptr : params.constrained;
  const kernels::TrieEdges* edges = edges_of(params.trie, params.level);
  const std::uint32_t* blocked = params.blocked == nullptr ? nullptr : params.blocked + params.word_offset;

  const kernels::SelectRowsParams rows{.logits = static_cast<const float*>(params.logits.data),
                                       .stride = params.logits.stride,
                                       .layout = layout,
                                       .batch = params.batch,
                                       .row_offsets = params.row_offsets,
                                       .constrained = constrained,
                                       .edges = edges,
                                       .blocked = blocked,
                                       .words = params.words,
                                       .scores = params.current.scores,
                                       .states = params.current.states,
                                       .status = params.status,
                                       .terms = scratch.terms,
                                       .slot_keys = scratch.slot_keys,
                                       .block_keys = scratch.block_keys};
  switch (layout.group_codes) {
    case 4:
      select_rows<4>(stream, rows, params.rows_capacity);
      break;
    case 8:
      select_rows<8>(stream, rows, params.rows_capacity);
      break;
    case 16:
      select_rows<16>(stream, rows, params.rows_capacity);
      break;
    default:
      select_rows<kernels::kMaxGroupCodes>(stream, rows, params.rows_capacity);
  }

  const std::int64_t capacity = capacity_of(params);
  launch(stream, kOp, kernels::select_kernel,
         {dim3(static_cast<unsigned>(params.batch)), dim3(static_cast<unsigned>(select_threads(params, layout))),
          kernels::SelectLists::bytes(static_cast<std::size_t>(capacity))},
         kernels::SelectParams{.logits = rows.logits,
                               .stride = rows.stride,
                               .layout = layout,
                               .row_offsets = params.row_offsets,
                               .next_offsets = params.next_offsets,
                               .constrained = constrained,
                               .edges = edges,
                               .blocked = blocked,
                               .words = params.words,
                               .terms = scratch.terms,
                               .slot_keys = scratch.slot_keys,
                               .block_keys = scratch.block_keys,
                               .capacity = static_cast<std::uint32_t>(capacity),
                               .links = links_of(params),
                               .next_scores = params.next.scores,
                               .next_states = params.next.states});
}

}  // namespace onerec::cuda
