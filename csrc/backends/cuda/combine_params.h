// What an experts' sum is to its kernels.
#pragma once

#include "backends/cuda/alignment.h"
#include "backends/cuda/kernels/moe.cuh"
#include "ops/moe.h"

namespace onerec::cuda {

template <class T>
kernels::CombineParams<T> combine_params(const MoeCombineParams& p) {
  return {.experts = static_cast<const T*>(p.expert_out.data),
          .expert_stride = p.expert_out.stride,
          .slots = p.slots,
          .weights = p.weights,
          .top_k = static_cast<int>(p.top_k),
          .shared = static_cast<const T*>(p.shared.data),
          .shared_stride = p.shared.stride,
          .h = static_cast<T*>(p.h.data),
          .h_stride = p.h.stride,
          .width = p.h.cols,
          .count = p.rows.count};
}

// All rows are whole vectors, at multiples of 16 bytes.
inline bool combines_vectors(const MoeCombineParams& p) {
  return p.h.cols * static_cast<std::int64_t>(size_of(p.h.dtype)) % 16 == 0 && rows_at_vectors(p.h) &&
         rows_at_vectors(p.expert_out) && (p.shared.data == nullptr || rows_at_vectors(p.shared));
}

}  // namespace onerec::cuda
