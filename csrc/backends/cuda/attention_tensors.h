// From an op's parameters to those of the cross-attention kernels of the ordinary cores.
#pragma once

#include "backends/cuda/kernels/attention_tensors.cuh"
#include "ops/cross_attention.h"

namespace onerec::cuda {

// T is the element type of q, k, v and out.
template <class T>
kernels::AttentionTensors<T> attention_tensors(const CrossAttentionParams& p) {
  return {.q = static_cast<const T*>(p.q.data),
          .q_stride = p.q.stride,
          .k = static_cast<const T*>(p.k.data),
          .k_stride = p.k.stride,
          .v = static_cast<const T*>(p.v.data),
          .v_stride = p.v.stride,
          .out = static_cast<T*>(p.out.data),
          .out_stride = p.out.stride,
          .row_offsets = p.row_offsets,
          .context_offsets = p.context_offsets};
}

inline kernels::StaticCodes static_codes(const Operand& quantized) {
  if (quantized.values.data == nullptr) return {};
  return {.codes = static_cast<std::uint8_t*>(quantized.values.data),
          .stride = quantized.values.stride,
          .scales = quantized.scales,
          .scale = quantized.static_scale,
          .inverse = 1.0f / quantized.static_scale};
}

}  // namespace onerec::cuda
