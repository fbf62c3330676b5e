// How the launchers of row kernels (kernels/row_team.cuh) choose teams and grids.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "backends/cuda/kernels/row_quantize.cuh"
#include "backends/cuda/launch.h"
#include "core/tensor_view.h"
#include "ops/operand.h"

namespace onerec::cuda {

struct RowPlan {
  std::uint32_t threads = 0;    // of a block; 0: no team can hold a row, the plain kernel takes it
  int lanes = 0;                // of a team within a warp: 8, 16 or 32; 0: a team is a block
  std::int64_t per_thread = 1;  // vectors; more than 1 in 32 lanes: WarpTeam
  std::int64_t parts = 1;
  std::int64_t part_vectors = 0;
};

// Whether rows are WarpTeams'.
constexpr bool is_warp_row(const RowPlan& plan) { return plan.lanes == kernels::kWarp && plan.per_thread > 1; }

// Rows of `vectors` that stay in one team. A thread of a block holds `per_thread` vectors, or twice as many where the
// block would have more than kWholeRowThreads; one of a smaller team holds one. Depends on the width alone: a row has
// the same bits in every batch.
inline constexpr std::int64_t kWholeRowThreads = 512;
inline RowPlan plan_whole_rows(std::int64_t vectors, std::int64_t per_thread) {
  for (const int lanes : {8, 16, 32}) {
    if (vectors <= lanes) return {.threads = 256, .lanes = lanes, .part_vectors = vectors};
  }
  if (vectors > kWholeRowThreads * per_thread) per_thread *= 2;
  if (vectors > kWholeRowThreads * per_thread) return {};
  const std::int64_t threads = (vectors + per_thread - 1) / per_thread;
  return {.threads = static_cast<std::uint32_t>((threads + 31) / 32 * 32),
          .per_thread = per_thread,
          .part_vectors = vectors};
}

// The same, with rows of up to kWarpVectors of BF16 in a warp each where there are enough of them for all warps: fewer
// take less time in blocks. Sums of rows have the bits of plan_whole_rows() with two vectors per thread either way.
inline constexpr std::int64_t kWarpVectors = 8 * kernels::kWarp;
inline RowPlan plan_many_rows(std::int64_t vectors, const Extent& rows, int multiprocessors) {
  constexpr std::int64_t kWarps = kernels::WarpTeam::kMaxThreads / kernels::kWarp * kernels::WarpTeam::kResidentBlocks;
  const RowPlan plan = plan_whole_rows(vectors, 2);
  if (plan.lanes > 0 || vectors > kWarpVectors || rows.capacity < kWarps * multiprocessors) return plan;
  return {.threads = kernels::WarpTeam::kMaxThreads,
          .lanes = kernels::kWarp,
          .per_thread = (vectors + kernels::kWarp - 1) / kernels::kWarp,
          .part_vectors = vectors};
}

// Rows of `vectors` that may be cut at scale blocks, into parts for blocks of at most kSplitThreads.
inline constexpr std::int64_t kSplitThreads = 256;
inline RowPlan plan_split_rows(std::int64_t vectors, std::int64_t per_thread) {
  const std::int64_t most = kSplitThreads * per_thread;
  const std::int64_t parts = (vectors + most - 1) / most;
  RowPlan plan = plan_whole_rows((vectors + parts - 1) / parts, per_thread);
  plan.parts = parts;
  if (parts > 1) plan.part_vectors = plan.threads * per_thread;  // a multiple of 64
  return plan;
}

inline kernels::RowParts row_parts(const RowPlan& plan, const Extent& rows, std::int64_t vectors) {
  return {.rows = rows.capacity,
          .count = rows.count,
          .vectors = static_cast<std::int32_t>(vectors),
          .part_vectors = static_cast<std::int32_t>(plan.part_vectors),
          .parts = static_cast<std::uint32_t>(plan.parts)};
}

// A block for every block's worth of parts, but no more than fill the device; with the plain kernel, for every part.
inline LaunchShape row_shape(const RowPlan& plan, const Extent& rows, int multiprocessors) {
  const std::uint32_t threads = plan.threads == 0 ? 256 : plan.threads;
  const std::int64_t teams = plan.lanes == 0 ? 1 : threads / static_cast<std::uint32_t>(plan.lanes);
  const std::int64_t blocks = (rows.capacity * plan.parts + teams - 1) / teams;
  const int resident = is_warp_row(plan) ? kernels::WarpTeam::kResidentBlocks * kernels::WarpTeam::kMaxThreads
                                         : kernels::kResidentThreads;
  const std::int64_t most = static_cast<std::int64_t>(resident / threads) * multiprocessors;
  return {static_cast<std::uint32_t>(std::min(blocks, most)), threads};
}

// Calls f(team, vectors per thread) for the plan's team; `WholeBlock` is that of a block, whose threads hold one of
// kPerThread.
template <class WholeBlock, int... kPerThread, class F>
void with_team(const RowPlan& plan, const F& f) {
  constexpr std::integral_constant<int, 1> kOne;
  switch (plan.lanes) {
    case 8:
      return f(kernels::LaneTeam<8>{}, kOne);
    case 16:
      return f(kernels::LaneTeam<16>{}, kOne);
    case 32:
      return f(kernels::LaneTeam<32>{}, kOne);
    default:
      ((plan.per_thread == kPerThread ? f(WholeBlock{}, std::integral_constant<int, kPerThread>{}) : void()), ...);
  }
}

// Calls f(kernels::WarpTeam{}, vectors per lane) for a plan of plan_many_rows() that has such a team, which is
// asked for nothing else.
template <int kVectors = 2, class F>
void with_warp_team(const RowPlan& plan, const F& f) {
  if constexpr (kVectors * kernels::kWarp <= kWarpVectors) {
    if (plan.per_thread == kVectors) return f(kernels::WarpTeam{}, std::integral_constant<int, kVectors>{});
    with_warp_team<kVectors + 1>(plan, f);
  }
}

// Every row begins at a multiple of `elements` elements, and of 16 bytes if those are more.
inline bool rows_aligned(const ConstMatrix& matrix, std::int64_t elements) {
  const auto bytes = std::min<std::size_t>(16, static_cast<std::size_t>(elements) * size_of(matrix.dtype));
  return reinterpret_cast<std::uintptr_t>(matrix.data) % bytes == 0 &&
         static_cast<std::size_t>(matrix.stride) * size_of(matrix.dtype) % bytes == 0;
}

inline std::int64_t vector_elements(DType dtype) { return 16 / static_cast<std::int64_t>(size_of(dtype)); }

// Parts are counted in 32 bits where a row has several parts.
inline bool countable(std::int64_t rows, std::int64_t parts) { return parts == 1 || rows <= 0xffffffffLL / parts; }

inline kernels::CodeRows code_rows(const Operand& operand) {
  if (operand.values.data == nullptr) return {};
  return {.kind = operand.scale_kind == ScaleKind::kPerRow ? kernels::Codes::kPerRow : kernels::Codes::kPerBlock,
          .codes = static_cast<std::uint8_t*>(operand.values.data),
          .stride = operand.values.stride,
          .scales = operand.scales,
          .scale_stride = operand.scale_stride};
}

}  // namespace onerec::cuda
