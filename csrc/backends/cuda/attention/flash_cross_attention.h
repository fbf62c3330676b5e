// Cross-attention on tensor cores. Free of CUTLASS.
#pragma once

#include "ops/cross_attention.h"

namespace onerec::cuda {

// How the work is cut into items, and what the splits of a context leave in the workspace.
struct FlashPlan {
  int splits = 1;              // parts of a context that run side by side
  bool whole = false;          // a warpgroup's rows to an item, whose context a block may hold as a whole
  bool paired = false;         // the two splits are added up by the blocks that have them, one item to a block
  std::int64_t row_tiles = 0;  // of a request
  int tile_rows = 0;
  std::int64_t items = 0;
  int blocks = 0;          // that share the items
  float* sums = nullptr;   // [splits, rows_capacity, heads, head_dim]
  float* norms = nullptr;  // [splits, rows_capacity, heads, 2]

  // Another kernel adds up what the splits leave; else the arrays are not used.
  bool combined() const { return splits > 1 && !paired; }
};

// BF16, head_dim 64 or 128, at most 64 heads to a group, scale > 0, at least one token of capacity; every pointer and
// row of q, k, v and out starts at a multiple of 16 bytes. Codes are made instead of `out` where they are given, in
// rows at multiples of 8 bytes: with a static scale; or, where splits are combined, by any, for at most
// kMostCombineThreads vectors of eight columns.
void flash_cross_attention(Stream& stream, const CrossAttentionParams& params, const FlashPlan& plan);

}  // namespace onerec::cuda
