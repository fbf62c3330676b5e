// The kernels of grouped_gemm(), a source file per format.
#pragma once

#include "backends/cuda/gemm/grouped_select.h"

namespace onerec::cuda {

using GroupedRunner = void (*)(Stream& stream, const GroupedLinearParams& params, int multiprocessors);

// The kernel for tiles of `outputs` x `tokens`; null if there is none.
GroupedRunner grouped_bf16(int outputs, int tokens);
GroupedRunner grouped_fp8_channel(int outputs, int tokens);
GroupedRunner grouped_fp8_block(int outputs, int tokens);

}  // namespace onerec::cuda
