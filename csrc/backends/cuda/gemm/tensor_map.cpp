#include "backends/cuda/gemm/tensor_map.h"

#include "backends/cuda/cuda_tensor_map.h"

namespace onerec::cuda {

CUtensorMap make_tensor_map(const char* op, const MatrixStack& stack, const BoxShape& box) {
  return encode_tensor_map(op, {.data = stack.data,
                                .dtype = stack.dtype,
                                .dimensions = stack.matrix_stride == 0 ? 2 : 3,
                                .extents = {stack.columns, stack.rows, stack.matrices},
                                .strides = {stack.row_stride, stack.matrix_stride},
                                .box = {box.columns, box.rows, 1}});
}

CUtensorMap make_tensor_map(const char* op, const void* data, std::int64_t columns, const kernels::WeightBoxes& boxes) {
  constexpr int kBoxColumns = 128;
  TensorBoxes tensor{.data = data, .dtype = DType::kE4M3, .dimensions = 5};
  tensor.extents[0] = columns;
  tensor.box[0] = kBoxColumns;
  for (int i = 0; i < 4; ++i) {
    tensor.extents[i + 1] = boxes.extents[i];
    tensor.strides[i] = boxes.strides[i] * columns;
    tensor.box[i + 1] = boxes.box[i];
  }
  return encode_tensor_map(op, tensor);
}

}  // namespace onerec::cuda
