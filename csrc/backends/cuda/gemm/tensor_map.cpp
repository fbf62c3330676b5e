#include "backends/cuda/gemm/tensor_map.h"

#include <cuda_runtime_api.h>

#include "backends/cuda/cuda_error.h"
#include "core/error.h"

namespace onerec::cuda {
namespace {

using Encoder = decltype(&cuTensorMapEncodeTiled);

// The driver's function, found at run time: the package does not link to the driver.
Encoder find_encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found),
        "find cuTensorMapEncodeTiled");
  if (found != cudaDriverEntryPointSuccess || function == nullptr) {
    throw DeviceError(
        "[cuda] got a driver without cuTensorMapEncodeTiled, want one for CUDA 12 or later. Update the NVIDIA driver.");
  }
  return reinterpret_cast<Encoder>(function);
}

}  // namespace

CUtensorMap make_tensor_map(const char* op, const MatrixStack& stack, const BoxShape& box) {
  static const Encoder encode = find_encoder();
  const auto bytes = static_cast<cuuint64_t>(size_of(stack.dtype));
  const cuuint32_t dimensions = stack.matrix_stride == 0 ? 2 : 3;
  const cuuint64_t extents[] = {static_cast<cuuint64_t>(stack.columns), static_cast<cuuint64_t>(stack.rows),
                                static_cast<cuuint64_t>(stack.matrices)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(stack.row_stride) * bytes,
                                static_cast<cuuint64_t>(stack.matrix_stride) * bytes};
  const cuuint32_t extent_of_box[] = {static_cast<cuuint32_t>(box.columns), static_cast<cuuint32_t>(box.rows), 1};
  const cuuint32_t steps[] = {1, 1, 1};
  const CUtensorMapDataType type =
      stack.dtype == DType::kBF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_UINT8;
  CUtensorMap map{};
  const CUresult status = encode(&map, type, dimensions, const_cast<void*>(stack.data), extents, strides, extent_of_box,
                                 steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw DeviceError(concat("[", op, "] got CUDA driver error ", static_cast<int>(status), " for a tensor map of ",
                             stack.matrices, " x ", stack.rows, " x ", stack.columns, " with row stride ",
                             stack.row_stride, ", want success. Report this shape."));
  }
  return map;
}

}  // namespace onerec::cuda
