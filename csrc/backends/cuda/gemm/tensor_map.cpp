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

CUtensorMap make_tensor_map(const char* op, const RowArray& array, const int (&box)[4]) {
  constexpr int kBoxColumns = 128;
  TensorBoxes boxes{.data = array.data, .dtype = DType::kE4M3, .dimensions = 5};
  boxes.extents[0] = array.columns;
  boxes.box[0] = kBoxColumns;
  for (int i = 0; i < 4; ++i) {
    boxes.extents[i + 1] = array.extents[i];
    boxes.strides[i] = array.strides[i] * array.columns;
    boxes.box[i + 1] = box[i];
  }
  return encode_tensor_map(op, boxes);
}

}  // namespace onerec::cuda
