// Cross-attention where every request has one row, as in the first step of decoding.
#pragma once

#include "backends/cuda/cuda_backend.h"
#include "ops/cross_attention.h"

namespace onerec::cuda {

// Whether the kernel takes params of these types and capacities; it looks at nothing else.
bool is_one_row_shape(const CrossAttentionParams& params);

// Params that it takes, with codes by a static scale or none; every pointer and row of q, k, v and out starts at a
// multiple of 16 bytes.
void one_row_attention(Stream& stream, const CrossAttentionParams& params, const DeviceLimits& limits);

}  // namespace onerec::cuda
