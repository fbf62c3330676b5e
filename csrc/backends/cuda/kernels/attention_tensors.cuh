// What the cross-attention kernels of the ordinary cores read and write.
#pragma once

#include <cstdint>

namespace onerec::cuda::kernels {

// In global memory; strides are in elements.
template <class T>
struct AttentionTensors {
  const T* q = nullptr;
  std::int64_t q_stride = 0;
  const T* k = nullptr;
  std::int64_t k_stride = 0;
  const T* v = nullptr;
  std::int64_t v_stride = 0;
  T* out = nullptr;
  std::int64_t out_stride = 0;
  const std::int32_t* row_offsets = nullptr;      // [batch + 1]
  const std::int32_t* context_offsets = nullptr;  // [batch + 1]
};

}  // namespace onerec::cuda::kernels
