// E4M3 codes and scales of weights, in host memory: what the loader and `onerec-engine quantize` share. Formulas:
// docs/numerics.md.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace onerec {

// `values` [n, k] contiguous, of FP32 or BF16. Writes `codes` [n, k] and one scale per row: `scales` [n].
void quantize_channel(DType dtype, const void* values, std::int64_t n, std::int64_t k, std::uint8_t* codes,
                      float* scales);

// The same with one scale per block of 128 x 128: `scales` [ceil(n / 128), ceil(k / 128)].
void quantize_block(DType dtype, const void* values, std::int64_t n, std::int64_t k, std::uint8_t* codes,
                    float* scales);

}  // namespace onerec
