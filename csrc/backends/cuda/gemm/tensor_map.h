// Descriptions of device memory for Hopper's copy engine, which brings boxes of a tensor into shared memory.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "backends/cuda/gemm/direct_tiles.h"
#include "core/dtype.h"

namespace onerec::cuda {

// A stack of row-major matrices; strides in elements. Addresses and strides are multiples of 16 bytes.
struct MatrixStack {
  const void* data = nullptr;
  DType dtype = DType::kBF16;
  std::int64_t columns = 0;
  std::int64_t rows = 0;
  std::int64_t matrices = 1;
  std::int64_t row_stride = 0;
  std::int64_t matrix_stride = 0;
};

struct BoxShape {
  int columns = 0;  // 128 bytes of them
  int rows = 0;     // at most 256
};

// Boxes of one matrix whose rows take 128 bytes each in shared memory, their 16-byte chunks permuted by the 128-byte
// swizzle; zeros outside of the matrix. Two coordinates for a single matrix (matrix_stride 0), three for a stack.
// `op` names the caller in errors. Throws DeviceError.
CUtensorMap make_tensor_map(const char* op, const MatrixStack& stack, const BoxShape& box);

// Boxes of 128 E4M3 codes of rows of `columns`, in the order of weight_boxes(); five coordinates.
CUtensorMap make_tensor_map(const char* op, const void* data, std::int64_t columns, const kernels::WeightBoxes& boxes);

}  // namespace onerec::cuda
