// Issues gather_rows_kernel (kernels/moe.cuh) for the ops that bring rows to their experts.
#pragma once

#include <cstdint>

#include "ops/moe.h"

namespace onerec::cuda {

// Words that a kernel behind this one counts with.
struct ClearedWords {
  std::uint32_t* data = nullptr;
  std::int64_t count = 0;
};

// gather_rows(), and makes `cleared` 0: at most a word for every thread of the kernel.
void gather_and_clear(Stream& stream, const GatherRowsParams& params, const ClearedWords& cleared);

}  // namespace onerec::cuda
