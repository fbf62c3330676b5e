// BF16 heads of 64 or 128 columns go to a kernel of their own where requests have one row, else, at most 64 to a group,
// to the tensor cores; everything else goes to the plain kernel.
#include "ops/cross_attention.h"

#include <algorithm>

#include "backends/cuda/alignment.h"
#include "backends/cuda/attention/flash_cross_attention.h"
#include "backends/cuda/attention_tensors.h"
#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/kernels/attention_layout.cuh"
#include "backends/cuda/kernels/combine_attention_splits.cuh"
#include "backends/cuda/kernels/plain_cross_attention.cuh"
#include "backends/cuda/launch.h"
#include "backends/cuda/one_row_attention.h"
#include "backends/cuda/row_launch.h"
#include "core/arena.h"
#include "core/error.h"

namespace onerec::cuda {
namespace {

constexpr std::int64_t kLargestHead = 256;

template <class T, int kLaneColumns>
void launch_plain(Stream& stream, const CrossAttentionParams& p) {
  const std::int64_t group_heads = p.heads / p.kv_heads;
  kernels::PlainAttentionArguments<T> arguments{attention_tensors<T>(p)};
  arguments.group_heads = static_cast<int>(group_heads);
  arguments.head_dim = static_cast<int>(p.head_dim);
  arguments.scale = p.scale;
  launch(stream, "cross_attention", kernels::plain_cross_attention<T, kLaneColumns>,
         {.grid = dim3(blocks_for(p.max_request_rows * group_heads, kernels::kPlainAttentionQueries),
                       static_cast<unsigned>(p.kv_heads), static_cast<unsigned>(p.batch)),
          .block = dim3(kernels::kPlainAttentionThreads),
          .shared_bytes = kernels::PlainAttentionTile<kLaneColumns>::kSharedBytes},
         arguments);
}

template <class T>
void launch_plain(Stream& stream, const CrossAttentionParams& p) {
  if (p.head_dim <= 64) {
    launch_plain<T, 2>(stream, p);
  } else if (p.head_dim <= 128) {
    launch_plain<T, 4>(stream, p);
  } else {
    launch_plain<T, 8>(stream, p);
  }
}

// Depends on capacities only.
FlashPlan plan_flash(const CrossAttentionParams& p, const DeviceLimits& limits, Arena& arena) {
  const int warpgroup_rows = kernels::rows_of_warpgroup(static_cast<int>(p.heads / p.kv_heads));
  // The size of tiles depends on addresses, which are not known yet.
  const std::int64_t tiles = blocks_for(p.max_request_tokens, kernels::kUsualTileTokens);
  const std::int64_t halves = blocks_for(p.max_request_rows, warpgroup_rows) * p.batch * p.kv_heads;
  const bool whole = kernels::choose_warpgroups(halves, tiles, limits.multiprocessors) == 1;
  const int tile_rows = (whole ? 1 : kernels::kFlashWarpgroups) * warpgroup_rows;
  const std::int64_t row_tiles = blocks_for(p.max_request_rows, tile_rows);
  const std::int64_t unsplit = row_tiles * p.batch * p.kv_heads;
  FlashPlan plan{.splits = kernels::choose_splits(unsplit, tiles, limits.multiprocessors),
                 .whole = whole,
                 .row_tiles = row_tiles,
                 .tile_rows = tile_rows};
  plan.items = unsplit * plan.splits;
  plan.blocks = static_cast<int>(std::min<std::int64_t>(plan.items, limits.multiprocessors));
  plan.paired = limits.clusters && plan.splits == 2 && plan.items == plan.blocks;
  if (plan.combined()) {
    const std::int64_t parts = plan.splits * p.rows_capacity * p.heads;
    plan.sums = arena.allocate_array<float>(parts * p.head_dim);
    plan.norms = arena.allocate_array<float>(parts * 2);
  }
  return plan;
}

enum class Kernel { kOneRow, kFlash, kPlain };

// For params whose rows all start at multiples of 16 bytes. Looks at nothing that differs between measuring and
// running.
Kernel kernel_of_shape(const CrossAttentionParams& p, const DeviceLimits& limits) {
  if (is_one_row_shape(p)) return Kernel::kOneRow;
  const bool flash = limits.tensor_cores && p.q.dtype == DType::kBF16 && (p.head_dim == 64 || p.head_dim == 128) &&
                     p.heads / p.kv_heads <= kernels::kWarpgroupRows && p.scale > 0.0f && p.tokens_capacity > 0;
  return flash ? Kernel::kFlash : Kernel::kPlain;
}

Kernel kernel_of(const CrossAttentionParams& p, const DeviceLimits& limits) {
  const bool at_vectors =
      rows_at_vectors(p.q) && rows_at_vectors(p.k) && rows_at_vectors(p.v) && rows_at_vectors(p.out);
  return at_vectors ? kernel_of_shape(p, limits) : Kernel::kPlain;
}

// Whether the kernels of the plan can make them.
bool flash_makes_codes(const CrossAttentionParams& p, const FlashPlan& plan) {
  constexpr std::int64_t kElements = kernels::kVector<kernels::bf16>;
  if (!rows_aligned(p.quantized.values, kElements)) return false;
  return plan.combined() ? p.heads * p.head_dim <= kElements * kernels::kMostCombineThreads
                         : p.quantized.static_scale > 0.0f;
}

}  // namespace

bool CudaBackend::fuses_cross_attention_codes(const CrossAttentionParams& params) const {
  switch (kernel_of(params, limits_)) {
    case Kernel::kOneRow:
      return params.quantized.static_scale > 0.0f;
    case Kernel::kFlash: {
      Arena arena;
      return flash_makes_codes(params, plan_flash(params, limits_, arena));
    }
    case Kernel::kPlain:
      break;
  }
  return false;
}

std::size_t CudaBackend::cross_attention_workspace(const CrossAttentionParams& params) const {
  require(params.head_dim <= kLargestHead, "[cross_attention] got head_dim ", params.head_dim, ", want at most ",
          kLargestHead, ". Run this model on the CPU.");
  if (kernel_of_shape(params, limits_) != Kernel::kFlash) return 0;
  Arena arena;
  plan_flash(params, limits_, arena);
  return arena.used();
}

void CudaBackend::cross_attention(Stream& stream, const CrossAttentionParams& params, Workspace workspace) {
  switch (kernel_of(params, limits_)) {
    case Kernel::kOneRow:
      return one_row_attention(stream, params, limits_);
    case Kernel::kFlash: {
      Arena arena(workspace.data, workspace.bytes);
      return flash_cross_attention(stream, params, plan_flash(params, limits_, arena));
    }
    case Kernel::kPlain:
      return params.q.dtype == DType::kF32 ? launch_plain<float>(stream, params)
                                           : launch_plain<kernels::bf16>(stream, params);
  }
}

}  // namespace onerec::cuda
