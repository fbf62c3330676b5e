// How the candidates of a row are cut into groups. A row's candidates, in ascending order of codes, are cut into groups
// of neighbours, and every group has a slot; kSlotsPerBlock neighbouring slots make a block. A request's slots ascend
// with its rows, so that an earlier slot holds the earlier candidates: among groups whose best scores are equal, the
// first one holds the winner.
#pragma once

#include "backends/cuda/kernels/beam_score.cuh"

namespace onerec::cuda::kernels {

inline constexpr int kSlotsPerBlock = 16;
// Of an unconstrained row: codes per group. More do not fit the loads of a warp that share a reduction.
inline constexpr int kMaxGroupCodes = 32;

struct RowLayout {
  int codebook;
  int group_codes;  // a power of two, 4 to kMaxGroupCodes
  int groups;       // ceil(codebook / group_codes)
  int slots;        // of a row: groups, rounded up to whole blocks

  __device__ __forceinline__ int blocks() const { return slots / kSlotsPerBlock; }
};

// What the second kernel needs to know of a row that has candidates. Constrained: the candidates are `count` edges from
// `first_edge` on; else all codes.
struct __align__(16) RowTerms {
  float cumulative;
  float lse;
  std::int32_t first_edge;
  std::int32_t count;
};

// The groups of a constrained row: equal numbers of edges, spread evenly over the slots.
struct EdgeGroups {
  int count;      // edges
  int per_group;  // at most group_codes
  int groups;
  int spread;  // group g has slot g * spread

  __device__ __forceinline__ EdgeGroups(const RowLayout& layout, int edges)
      : count(edges),
        per_group(max((edges + layout.groups - 1) / layout.groups, 1)),
        groups((edges + per_group - 1) / per_group),
        spread(layout.slots / max(groups, 1)) {}
};

}  // namespace onerec::cuda::kernels
