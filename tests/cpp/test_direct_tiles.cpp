// The order in which the direct kernel of the dense matrix product makes tiles, and the order of the weights' rows in
// one.
#include "backends/cuda/gemm/direct_tiles.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <set>
#include <utility>
#include <vector>

namespace onerec::cuda::kernels {
namespace {

constexpr int kTileTokens = 128;

// The rows of the weight as a box at `group` brings them.
std::vector<std::int64_t> rows_of_box(const WeightBoxes& boxes, std::int64_t group) {
  std::vector<std::int64_t> rows;
  for (int d = 0; d < boxes.box[3]; ++d) {
    for (int c = 0; c < boxes.box[2]; ++c) {
      for (int b = 0; b < boxes.box[1]; ++b) {
        for (int a = 0; a < boxes.box[0]; ++a) {
          const bool outside = group + d >= boxes.extents[3];
          rows.push_back(outside ? -1
                                 : a * boxes.strides[0] + b * boxes.strides[1] + c * boxes.strides[2] +
                                       (group + d) * boxes.strides[3]);
        }
      }
    }
  }
  return rows;
}

// What a thread holds: lane % 4 = q has columns 8i + 2q and 8i + 2q + 1 of the instruction.
std::int64_t instruction_column(int i, int q, int b) { return 8 * i + 2 * q + b; }

constexpr int kVectors[] = {kResultVector, kResultVector / 2};

TEST(DirectTiles, AThreadHoldsNeighbouringOutputs) {
  constexpr std::int64_t kOutputs = 352;
  for (const int vector : kVectors) {
    const int columns = group_columns(vector);
    const WeightBoxes boxes = weight_boxes(DirectResult::kValues, vector, kOutputs, 256);
    for (const std::int64_t first : {0, 128, 256}) {
      const std::vector<std::int64_t> rows = rows_of_box(boxes, first / columns);
      ASSERT_EQ(rows.size(), 256U);
      const int steps = vector / 2;  // columns 8i of the instruction that are a group's
      for (int q = 0; q < 4; ++q) {
        for (int i = 0; i < 32; ++i) {
          for (int b = 0; b < 2; ++b) {
            // The kernel stores sum i % steps * 2 + b of a group behind the thread's first column.
            const std::int64_t output = first + i / steps * columns + vector * q + i % steps * 2 + b;
            const auto place = static_cast<std::size_t>(instruction_column(i, q, b));
            EXPECT_EQ(rows[place], output < kOutputs ? output : -1) << vector << " " << q << " " << i << " " << b;
          }
        }
      }
    }
  }
}

TEST(DirectTiles, AThreadHoldsGatesAndUpsOfNeighbouringColumns) {
  constexpr std::int64_t kWidth = 160;
  for (const int vector : kVectors) {
    const int columns = group_columns(vector);
    const WeightBoxes boxes = weight_boxes(DirectResult::kSwigluValues, vector, 2 * kWidth, 128);
    for (const std::int64_t first : {0, 64, 128}) {
      const std::vector<std::int64_t> rows = rows_of_box(boxes, first / columns);
      ASSERT_EQ(rows.size(), 128U);
      for (int q = 0; q < 4; ++q) {
        for (int i = 0; i < 16; ++i) {
          const std::int64_t hidden = first + i / vector * columns + vector * q + i % vector;
          const std::int64_t gate = rows[static_cast<std::size_t>(instruction_column(i, q, 0))];
          const std::int64_t up = rows[static_cast<std::size_t>(instruction_column(i, q, 1))];
          EXPECT_EQ(gate, hidden < kWidth ? hidden : -1) << vector << " " << q << " " << i;
          EXPECT_EQ(up, hidden < kWidth ? kWidth + hidden : -1) << vector << " " << q << " " << i;
        }
      }
    }
  }
}

TEST(DirectTiles, VectorsFillATile) {
  EXPECT_EQ(vector_columns(256), 8);
  EXPECT_EQ(vector_columns(96), 8);
  EXPECT_EQ(vector_columns(112), 4);
  EXPECT_EQ(vector_columns(80), 4);
}

// Parts of a tile that the blocks of a cluster bring are the rows of the whole tile.
TEST(DirectTiles, PartsAreWholeGroups) {
  for (const DirectResult result : {DirectResult::kValues, DirectResult::kSwigluValues}) {
    for (const int blocks : {2, 4}) {
      const std::vector<std::int64_t> whole = rows_of_box(weight_boxes(result, kResultVector, 1024, 256), 2);
      const WeightBoxes part = weight_boxes(result, kResultVector, 1024, 256 / blocks);
      std::vector<std::int64_t> joined;
      for (int block = 0; block < blocks; ++block) {
        const std::vector<std::int64_t> rows = rows_of_box(part, 2 + block * part.box[3]);
        joined.insert(joined.end(), rows.begin(), rows.end());
      }
      EXPECT_EQ(joined, whole);
    }
  }
}

TEST(DirectTiles, EveryLiveTileOnce) {
  for (const int cluster : {2, 4}) {
    for (const int columns : {1, 7, 56}) {
      for (const int rows : {0, 1, 128, 257, 2048, 2049, 5000, 16384}) {
        const int cluster_rows = cluster * kTileTokens;
        const DirectTiles tiles(rows, cluster_rows, columns);
        std::set<std::pair<int, int>> found;
        for (int i = 0; i < tiles.count(); ++i) {
          const DirectTiles::Place place = tiles.place(i);
          EXPECT_GE(place.row_cluster, 0);
          EXPECT_LT(place.row_cluster * cluster_rows, rows);
          EXPECT_GE(place.column, 0);
          EXPECT_LT(place.column, columns);
          EXPECT_TRUE(found.emplace(place.row_cluster, place.column).second) << "twice";
        }
        EXPECT_EQ(found.size(), static_cast<std::size_t>((rows + cluster_rows - 1) / cluster_rows * columns));
      }
    }
  }
}

// What runs at a time reads few weights and few tokens.
TEST(DirectTiles, RowsOfABandComeFirst) {
  const DirectTiles tiles(5000, 256, 3);  // bands of 8, 8 and 4 clusters of rows
  for (int i = 0; i < tiles.count(); ++i) {
    const int band = i / 24;
    const int height = band == 2 ? 4 : 8;
    const DirectTiles::Place place = tiles.place(i);
    EXPECT_EQ(place.row_cluster, band * 8 + i % 24 % height);
    EXPECT_EQ(place.column, i % 24 / height);
  }
}

// With fewer live rows than the capacity, the first tiles of the clusters keep their columns as long as a band is full:
// their weights are brought before the number of live rows is known.
TEST(DirectTiles, FirstColumnsDoNotDependOnLiveRowsBehindTheFirstBand) {
  const DirectTiles all(16384, 256, 7);
  for (const int live : {2048, 2049, 12288}) {
    const DirectTiles some(live, 256, 7);
    for (int cluster = 0; cluster < 56; ++cluster) EXPECT_EQ(all.place(cluster).column, some.place(cluster).column);
  }
}

// Every count has words of its own, and those of the rows fill the rest.
TEST(DirectTiles, ProgressHasAWordForEverything) {
  for (const int rows : {1, 127, 128, 129, 2348, 16384}) {
    const DirectProgress progress(rows);
    std::set<std::int64_t> words = {DirectProgress::begun(), DirectProgress::taken()};
    for (int row = 0; row < rows; row += DirectProgress::kRows) {
      EXPECT_TRUE(words.insert(progress.stored(row)).second);
      EXPECT_EQ(progress.stored(std::min(row + DirectProgress::kRows, rows) - 1), progress.stored(row));
    }
    for (int row = 0; row < rows; ++row) EXPECT_TRUE(words.insert(progress.largest(row)).second);
    EXPECT_LT(*words.rbegin(), progress.words());
  }
}

}  // namespace
}  // namespace onerec::cuda::kernels
