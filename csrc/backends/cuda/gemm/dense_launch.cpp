#include <array>
#include <utility>

#include "backends/cuda/cuda_device.h"
#include "backends/cuda/cuda_weight.h"
#include "backends/cuda/gemm/dense_gemm.h"
#include "backends/cuda/gemm/dense_instances.h"
#include "core/error.h"

namespace onerec::cuda {
namespace {

using Run = const char* (*)(const DenseGemmCall&);

template <int... kConfigs>
constexpr std::array<Run, sizeof...(kConfigs)> all_kernels(std::integer_sequence<int, kConfigs...>) {
  return {run_dense_gemm<kConfigs>...};
}

constexpr auto kKernels = all_kernels(std::make_integer_sequence<int, kGemmConfigCount>{});

}  // namespace

void dense_gemm(Stream& stream, const LinearParams& params, int config, int multiprocessors) {
  const CudaWeight& weight = weight_of(params.weight);
  const DenseGemmCall call{.x = params.x.values.data,
                           .x_stride = params.x.values.stride,
                           .x_scales = params.x.scales,
                           .weights = weight.values(),
                           .weight_scales = weight.scales(),
                           .bias = params.bias,
                           .residual = params.residual.data,
                           .residual_stride = params.residual.stride,
                           .y = params.y.data,
                           .y_stride = params.y.stride,
                           .rows = static_cast<int>(params.rows.capacity),
                           .outputs = static_cast<int>(weight.outputs),
                           .inputs = static_cast<int>(weight.inputs),
                           .live_rows = params.rows.count,
                           .negative_slope = params.activation == Activation::kLeakyRelu ? params.negative_slope : 1.0f,
                           .multiprocessors = multiprocessors,
                           .stream = handle(stream)};
  const char* problem = kKernels[static_cast<std::size_t>(config)](call);
  if (problem == nullptr) return;
  throw DeviceError(concat("[linear] got \"", problem, "\" for kernel ", gemm_name(config), " of ", call.rows, " x [",
                           call.outputs, ", ", call.inputs, "], want a launch. Close this engine and report it."));
}

}  // namespace onerec::cuda
