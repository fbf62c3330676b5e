// How the split kernel of the dense matrix product divides a tile.
#include "backends/cuda/gemm/split_tiles.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <set>

namespace onerec::cuda::kernels {
namespace {

TEST(SplitTiles, PartsAreAllStepsInOrder) {
  for (const int parts : {1, 2, 4}) {
    for (const int steps : {1, 2, 3, 7, 14, 15, 56}) {
      int next = 0;
      for (int part = 0; part < parts; ++part) {
        const DepthRange range = depth_range(steps, part, parts);
        EXPECT_EQ(range.first, next);
        EXPECT_GE(range.count, steps / parts);
        EXPECT_LE(range.count, (steps + parts - 1) / parts);
        next += range.count;
      }
      EXPECT_EQ(next, steps);
    }
  }
}

TEST(SplitTiles, EveryUnitHasOneOwner) {
  for (const int outputs : {96, 112, 128}) {
    for (const int parts : {1, 2, 4}) {
      int units = 0;
      for (int part = 0; part < parts; ++part) {
        EXPECT_GT(units_of_part(outputs, part, parts), 0);
        EXPECT_EQ(units, part * owned_units(outputs, parts));
        units += units_of_part(outputs, part, parts);
      }
      EXPECT_EQ(units, split_units(outputs));
    }
  }
}

// The last steps' products may be under way when sums arrive; the kernel has waited for all others.
TEST(SplitTiles, SumsAreReceivedWhereProductsAreDone) {
  for (const int parts : {2, 4}) {
    for (int ring = parts + 1; ring <= 8; ++ring) {
      for (const int steps : {1, 2, 3, 7, 14, 15, 29, 56}) {
        for (int to = 0; to < parts; ++to) {
          const int count = depth_range(steps, to, parts).count;
          std::set<int> places;
          for (int from = 0; from < parts; ++from) {
            if (from == to) continue;
            const int place = receiving_step(steps, from, to, parts, ring);
            EXPECT_TRUE(places.insert(place).second) << "two blocks' sums in one place";
            EXPECT_GE(place, 0);
            EXPECT_LT(place, ring);
            EXPECT_TRUE(count == 0 || place != (count - 1) % ring);
          }
        }
      }
    }
  }
}

// A thread with lane % 4 = q has the instruction's columns 8i + 2q + b: outputs 4q + 2i + b of each group.
TEST(SplitTiles, AThreadHoldsFourNeighbouringOutputs) {
  constexpr std::int64_t kOutputs = 1808;
  const WeightBoxes boxes = split_weight_boxes(kOutputs, 112);
  EXPECT_EQ(boxes.extents[3] * kSplitGroup, kOutputs);
  EXPECT_EQ(boxes.box[0] * boxes.box[1] * boxes.box[2] * boxes.box[3], 112);
  for (int q = 0; q < 4; ++q) {
    for (int i = 0; i < 2; ++i) {
      for (int b = 0; b < 2; ++b) {
        const int column = 8 * i + 2 * q + b;
        // Boxes bring the first dimension's rows first.
        const int at[3] = {column % 2, column / 2 % 4, column / 8};
        EXPECT_EQ(at[0] * boxes.strides[0] + at[1] * boxes.strides[1] + at[2] * boxes.strides[2], 4 * q + 2 * i + b);
      }
    }
  }
}

}  // namespace
}  // namespace onerec::cuda::kernels
