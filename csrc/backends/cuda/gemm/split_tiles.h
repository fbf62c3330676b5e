// How the split kernel of the dense product divides a tile among the blocks of a cluster, and which rows of W the
// columns of a tile are. Plain C++, so that the host can test it.
#pragma once

#include <cstdint>

#include "backends/cuda/gemm/direct_tiles.h"

namespace onerec::cuda::kernels {

// Steps along K: [first, first + count).
struct DepthRange {
  int first;
  int count;
};

// Those of block `part` of `parts`; 0 of them where there are fewer steps than parts.
constexpr DepthRange depth_range(int steps, int part, int parts) {
  const int first = static_cast<int>(static_cast<std::int64_t>(steps) * part / parts);
  return {first, static_cast<int>(static_cast<std::int64_t>(steps) * (part + 1) / parts) - first};
}

// A thread has 4 neighbouring columns of each group of y.
constexpr int kSplitVector = 4;
constexpr int kSplitGroup = group_columns(kSplitVector);

// Boxes of `box_rows` rows of a weight of `outputs` rows; both are multiples of kSplitGroup.
constexpr WeightBoxes split_weight_boxes(std::int64_t outputs, int box_rows) {
  return weight_boxes(DirectResult::kValues, kSplitVector, outputs, box_rows);
}

// The sums that a thread has of a tile come in units of one of its two rows and a group's 4 columns; those of its first
// row come first. A unit is finished by the block that owns it.
constexpr int split_units(int outputs) { return 2 * outputs / kSplitGroup; }
constexpr int owned_units(int outputs, int parts) { return (split_units(outputs) + parts - 1) / parts; }
constexpr int units_of_part(int outputs, int part, int parts) {
  const int first = part * owned_units(outputs, parts);
  const int left = split_units(outputs) - first;
  return left < owned_units(outputs, parts) ? left : owned_units(outputs, parts);
}

// The place in the ring where block `to` receives the sums of block `from`, both of the parts of a tile: one that has
// not been used for `to`'s last steps.
constexpr int receiving_step(int depth_steps, int from, int to, int parts, int ring_steps) {
  return (depth_range(depth_steps, to, parts).count + (from < to ? from : from - 1)) % ring_steps;
}

}  // namespace onerec::cuda::kernels
