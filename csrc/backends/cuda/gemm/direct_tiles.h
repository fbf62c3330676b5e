// Which tiles of y the blocks of the direct kernel make, in which order, and which rows of W the columns of a tile are.
// Plain C++, so that the host can test it.
#pragma once

#include <cstdint>

namespace onerec::cuda::kernels {

enum class DirectResult {
  kValues,        // y
  kAddedValues,   // y, added to a residual
  kSwigluValues,  // silu(gate) * up: gates and ups are a weight's halves
  kSwigluCodes,   // the same as codes by a scale that is known beforehand
};

constexpr bool is_swiglu(DirectResult result) {
  return result == DirectResult::kSwigluValues || result == DirectResult::kSwigluCodes;
}

// Clusters of blocks make tiles of neighbouring rows and the same columns. Such clusters of tiles are numbered: those
// of neighbouring rows come first, so that what runs at a time shares what it reads of W, in bands of at most kBandRows
// rows, so that what it reads of x stays in the L2 cache while the columns go by.
class DirectTiles {
 public:
  static constexpr int kBandRows = 2048;

  struct Place {
    int row_cluster;
    int column;  // of tiles
  };

  // `cluster_rows`: of a cluster of tiles, at most kBandRows.
  constexpr DirectTiles(int rows, int cluster_rows, int columns)
      : row_clusters_((rows + cluster_rows - 1) / cluster_rows), columns_(columns), band_(kBandRows / cluster_rows) {}

  constexpr int count() const { return row_clusters_ * columns_; }

  constexpr Place place(int index) const {
    const int per_band = band_ * columns_;
    const int first = index / per_band * band_;
    const int rest = index % per_band;
    const int left = row_clusters_ - first;
    const int height = left < band_ ? left : band_;
    return {first + rest % height, rest / height};
  }

 private:
  int row_clusters_;
  int columns_;
  int band_;  // row clusters of a band
};

// What blocks share while they make codes of the result (direct_codes.cuh): words, all 0 at first. Words that many wait
// for lie apart from those that many add to.
class DirectProgress {
 public:
  static constexpr int kRows = 128;  // of a tile

  constexpr explicit DirectProgress(int rows) : rows_(rows) {}

  static constexpr int begun() { return 0; }   // coding warps
  static constexpr int taken() { return 32; }  // groups of rows
  // Of the tiles with `row`: those that have been stored.
  constexpr int stored(int row) const { return 64 + row / kRows; }
  // Of row `row`: the bits of its largest magnitude.
  constexpr std::int64_t largest(int row) const { return stored(rows_) + std::int64_t{1} + row; }
  constexpr std::int64_t words() const { return largest(rows_); }

 private:
  int rows_;
};

// The matrix instruction gives a thread with lane % 4 = q the columns 8i + 2q and 8i + 2q + 1. For n neighbouring
// columns of the result per thread, the copy engine brings the rows of W in another order: as boxes of a tensor with
// the dimensions (b, q, i, group) besides K, whose strides are these. Column 8i + 2q + b of a group is
//   kValues and kAddedValues: row nq + 2i + b of the group's 4n;
//   the others: the gate (b = 0) or the up (b = 1) of hidden column nq + i of the group's 4n.
struct WeightBoxes {
  std::int64_t extents[4];
  std::int64_t strides[4];  // in rows of W
  int box[4];
};

constexpr int group_columns(int vector) { return 4 * vector; }  // of the result
constexpr int kResultVector = 8;                                // stored as 16 bytes
constexpr int kResultGroup = group_columns(kResultVector);
// Of tiles whose columns are no whole groups of that size the threads have half as many.
constexpr int vector_columns(int tile_columns) {
  return tile_columns % kResultGroup == 0 ? kResultVector : kResultVector / 2;
}
constexpr int group_rows(DirectResult result, int vector) {  // of W
  return (is_swiglu(result) ? 2 : 1) * group_columns(vector);
}

// Boxes of `box_rows` rows of a weight of `outputs` rows, for `vector` columns per thread; both are multiples of
// group_rows().
constexpr WeightBoxes weight_boxes(DirectResult result, int vector, std::int64_t outputs, int box_rows) {
  const int columns = group_columns(vector);
  const std::int64_t groups = outputs / group_rows(result, vector);
  const int box_groups = box_rows / group_rows(result, vector);
  if (is_swiglu(result)) {
    return {{2, 4, vector, groups}, {outputs / 2, vector, 1, columns}, {2, 4, vector, box_groups}};
  }
  return {{2, 4, vector / 2, groups}, {1, vector, 2, columns}, {2, 4, vector / 2, box_groups}};
}

}  // namespace onerec::cuda::kernels
