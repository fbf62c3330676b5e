// y = epilogue(x W^T) for rows of x sorted by expert: what linear and grouped_linear share.
//
// The work is cut into tasks of a row chunk x a column panel of one expert, which threads take from a common counter. A
// task is one call of the library, which leaves its FP32 sums in a tile of the workspace, and the epilogue while the
// tile is still in cache. If the library cannot multiply x as it lies, all of x is first expanded: converted to the
// weight's type, or its rows closed up.
#pragma once

#include <memory>
#include <span>

#include "backends/cpu/gemm.h"
#include "backends/cpu/pack.h"
#include "ops/linear.h"

namespace onerec::cpu {

class Matmul {
 public:
  // `params.rows.capacity` rows at most; `params.rows.count` is not looked at. Makes or finds the library's kernels.
  Matmul(const LinearParams& params, int threads);

  std::size_t workspace_bytes() const { return workspace_bytes_; }

  // Rows [offsets[e], offsets[e + 1]) belong to expert e. Throws InternalError if the library fails.
  void run(std::span<const std::int32_t> offsets, void* workspace) const;

 private:
  struct Task {
    std::int64_t expert, panel, begin, rows;
  };
  class Tasks;

  void expand_rows(std::int64_t begin, std::int64_t end, void* expanded) const;
  bool do_task(const Task& task, std::byte* expanded, std::byte* own) const;

  LinearParams params_;
  const CpuLinearWeight* weight_;
  std::shared_ptr<const Gemm> gemm_;
  bool expand_input_;
  bool sums_are_output_;  // FP32 sums of one panel with nothing to do to them go straight to y
  int threads_;
  std::size_t tile_bytes_;
  std::size_t own_bytes_;  // of each thread: its tile, then the library's scratch
  std::size_t expanded_bytes_;
  std::size_t workspace_bytes_;
};

}  // namespace onerec::cpu
