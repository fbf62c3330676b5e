#include "backends/cuda/cuda_tensor_map.h"

#include <cuda_runtime_api.h>

#include <string>

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

std::string text_of(const TensorBoxes& boxes) {
  std::string text = concat("extents ", boxes.extents[0]);
  for (int i = 1; i < boxes.dimensions; ++i) {
    text += concat(" x ", boxes.extents[i], " (stride ", boxes.strides[i - 1], ")");
  }
  return text;
}

}  // namespace

CUtensorMap encode_tensor_map(const char* op, const TensorBoxes& boxes) {
  static const Encoder encode = find_encoder();
  const auto bytes = static_cast<std::int64_t>(size_of(boxes.dtype));
  cuuint64_t extents[kMostTensorDimensions] = {};
  cuuint64_t strides[kMostTensorDimensions] = {};
  cuuint32_t box[kMostTensorDimensions] = {};
  cuuint32_t steps[kMostTensorDimensions] = {};
  for (int i = 0; i < boxes.dimensions; ++i) {
    extents[i] = static_cast<cuuint64_t>(boxes.extents[i]);
    if (i > 0) strides[i - 1] = static_cast<cuuint64_t>(boxes.strides[i - 1] * bytes);
    box[i] = static_cast<cuuint32_t>(boxes.box[i]);
    steps[i] = 1;
  }
  const CUtensorMapDataType type =
      boxes.dtype == DType::kBF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_UINT8;
  CUtensorMap map{};
  const CUresult status =
      encode(&map, type, static_cast<cuuint32_t>(boxes.dimensions), const_cast<void*>(boxes.data), extents, strides,
             box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw DeviceError(concat("[", op, "] got CUDA driver error ", static_cast<int>(status), " for a tensor map of ",
                             text_of(boxes), ", want success. Report this shape."));
  }
  return map;
}

}  // namespace onerec::cuda
