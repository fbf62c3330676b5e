// What the cross-attention kernels of the ordinary cores read and write.
#pragma once

#include <cstdint>

namespace onerec::cuda::kernels {

// E4M3 codes of the rounded output by a static scale, in place of `out`.
struct StaticCodes {
  std::uint8_t* codes = nullptr;  // [rows, heads * head_dim]; null: none
  std::int64_t stride = 0;
  float* scales = nullptr;  // [rows], all of them to be `scale`
  float scale = 0.0f;       // a power of two
  float inverse = 1.0f;     // 1 / scale; 1 without codes
};

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
