#include "backends/cuda/plain_linear.h"

#include <algorithm>

#include "backends/cuda/alignment.h"
#include "backends/cuda/cuda_weight.h"
#include "backends/cuda/launch.h"

namespace onerec::cuda {
namespace {

using kernels::SmallLinearParams;
using kernels::WeightKind;

// Warps that an SM needs to keep enough loads under way.
constexpr std::int64_t kWarpsPerMultiprocessor = 12;
constexpr std::int64_t kMaxGridY = 65535;

// As few warps per output as fill the device; depends on the weight alone.
int split_of(const LinearWeight& weight, int multiprocessors) {
  const std::int64_t vectors = weight.inputs * static_cast<std::int64_t>(size_of(weight.dtype)) / 16;
  const std::int64_t teams = (weight.outputs + kernels::kSmallLinearOutputs - 1) / kernels::kSmallLinearOutputs;
  int split = 1;
  while (split < kernels::kSmallLinearWarps && teams * split < kWarpsPerMultiprocessor * multiprocessors &&
         vectors > std::int64_t{kernels::kWarp} * split) {
    split *= 2;
  }
  return split;
}

template <class View>
auto* from_column(const View& matrix, std::int64_t first) {
  return matrix.data == nullptr ? nullptr : matrix.columns(first, matrix.cols - first).data;
}

template <WeightKind kKind, class Y, int kRows>
void run(Stream& stream, const char* op, const SmallLinearParams& params) {
  const std::int64_t chunks = kernels::small_linear_chunks(params.rows, params.experts, kRows);
  const dim3 grid(static_cast<unsigned>(kernels::small_linear_blocks(params.outputs, params.split)),
                  static_cast<unsigned>(std::min(chunks, kMaxGridY)));
  launch(stream, op, kernels::small_linear_kernel<kKind, Y, kRows>,
         {grid, dim3(kernels::kSmallLinearThreads), kernels::small_linear_slots() * sizeof(uint4)}, params);
}

template <WeightKind kKind, class Y>
void run_rows(Stream& stream, const char* op, const SmallLinearParams& params) {
  // Rows that a chunk lacks cost little; a weight read for one more chunk does.
  const std::int64_t rows = params.rows / params.experts;
  if (params.rows == 1) {
    run<kKind, Y, 1>(stream, op, params);
  } else if (rows <= 4) {
    run<kKind, Y, 4>(stream, op, params);
  } else {
    run<kKind, Y, 8>(stream, op, params);
  }
}

template <class Y>
void run_kind(Stream& stream, const char* op, WeightKind kind, const SmallLinearParams& params) {
  switch (kind) {
    case WeightKind::kFloat:
      return run_rows<WeightKind::kFloat, Y>(stream, op, params);
    case WeightKind::kBf16:
      return run_rows<WeightKind::kBf16, Y>(stream, op, params);
    case WeightKind::kFp8Channel:
      return run_rows<WeightKind::kFp8Channel, Y>(stream, op, params);
    case WeightKind::kFp8Block:
      return run_rows<WeightKind::kFp8Block, Y>(stream, op, params);
  }
}

}  // namespace

WeightKind weight_kind(const LinearWeight& weight) {
  switch (weight.format) {
    case WeightFormat::kFp8Channel:
      return WeightKind::kFp8Channel;
    case WeightFormat::kFp8Block:
      return WeightKind::kFp8Block;
    case WeightFormat::kDense:
      break;
  }
  return weight.dtype == DType::kF32 ? WeightKind::kFloat : WeightKind::kBf16;
}

SmallLinearParams small_linear_params(const LinearParams& params, const std::int32_t* offsets, int multiprocessors) {
  const CudaWeight& weight = weight_of(params.weight);
  const Matrix& x = params.x.values;
  const std::size_t weight_row = static_cast<std::size_t>(weight.inputs) * size_of(weight.dtype);
  const bool vectors = rows_at_vectors(x) && at_vector(weight.values()) && weight_row % 16 == 0;
  // What is left out leaves all addresses where they are aligned.
  constexpr std::int64_t kTogether = 16;
  const std::int64_t first = params.unread / kTogether * kTogether;
  return {.x = x.data,
          .x_stride = x.stride,
          .x_scales = params.x.scales,
          .x_scale_stride = params.x.scale_stride,
          .weights = static_cast<const std::byte*>(weight.values()) + static_cast<std::size_t>(first) * weight_row,
          .weight_scales = weight.format == WeightFormat::kFp8Channel ? weight.scales() + first : weight.scales(),
          .bias = params.bias == nullptr ? nullptr : params.bias + first,
          .residual = from_column(params.residual, first),
          .residual_stride = params.residual.stride,
          .y = from_column(params.y, first),
          .y_stride = params.y.stride,
          .rows = params.rows.capacity,
          .outputs = weight.outputs - first,
          .inputs = weight.inputs,
          .count = params.rows.count,
          .offsets = offsets,
          .experts = static_cast<int>(weight.experts),
          .negative_slope = params.activation == Activation::kLeakyRelu ? params.negative_slope : 1.0f,
          .split = split_of(weight, multiprocessors),
          .vectors = vectors ? 1 : 0};
}

void plain_linear(Stream& stream, const char* op, const LinearParams& params, const std::int32_t* offsets,
                  int multiprocessors) {
  const SmallLinearParams kernel_params = small_linear_params(params, offsets, multiprocessors);
  const WeightKind kind = weight_kind(*params.weight);
  if (params.y.dtype == DType::kF32) {
    run_kind<float>(stream, op, kind, kernel_params);
  } else {
    run_kind<kernels::bf16>(stream, op, kind, kernel_params);
  }
}

}  // namespace onerec::cuda
