// Descriptions of device memory for Hopper's copy engine, which brings boxes of a tensor into shared memory.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "core/dtype.h"

namespace onerec::cuda {

inline constexpr int kMostTensorDimensions = 5;

// Dimensions from the innermost one on, which is contiguous: strides[i], in elements, is that of dimension i + 1.
// Addresses and strides are multiples of 16 bytes. A box is 128 bytes wide, its other sides at most 256.
struct TensorBoxes {
  const void* data = nullptr;
  DType dtype = DType::kBF16;
  int dimensions = 0;
  std::int64_t extents[kMostTensorDimensions] = {};
  std::int64_t strides[kMostTensorDimensions - 1] = {};
  std::int64_t box[kMostTensorDimensions] = {};
};

// A box lies in shared memory as rows of 128 bytes, whose 16-byte chunks are permuted by the 128-byte swizzle; zeros
// outside of the tensor. `op` names the caller in errors. Throws DeviceError.
CUtensorMap encode_tensor_map(const char* op, const TensorBoxes& boxes);

}  // namespace onerec::cuda
