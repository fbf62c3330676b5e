#include <array>
#include <utility>

#include "backends/cuda/cuda_device.h"
#include "backends/cuda/cuda_weight.h"
#include "backends/cuda/gemm/dense_gemm.h"
#include "backends/cuda/gemm/dense_instances.h"
#include "backends/cuda/gemm/direct_instances.h"
#include "core/error.h"

namespace onerec::cuda {
namespace {

using Run = const char* (*)(const DenseGemmCall&);

// Null for kernels that are not CUTLASS's.
template <int kConfig>
constexpr Run kernel_of() {
  if constexpr (is_ours(kGemmConfigs[kConfig].schedule)) {
    return nullptr;
  } else {
    return run_dense_gemm<kConfig>;
  }
}

template <int... kConfigs>
constexpr std::array<Run, sizeof...(kConfigs)> all_kernels(std::integer_sequence<int, kConfigs...>) {
  return {kernel_of<kConfigs>()...};
}

constexpr auto kKernels = all_kernels(std::make_integer_sequence<int, kGemmConfigCount>{});

// The product alone.
DenseGemmCall call_of(Stream& stream, const Operand& x, const LinearWeight* linear_weight, const float* bias,
                      const Matrix& y, const Extent& rows, int multiprocessors) {
  const CudaWeight& weight = weight_of(linear_weight);
  return {.x = x.values.data,
          .x_stride = x.values.stride,
          .x_scales = x.scales,
          .weights = weight.values(),
          .weight_scales = weight.scales(),
          .bias = bias,
          .y = y.data,
          .y_stride = y.stride,
          .rows = static_cast<int>(rows.capacity),
          .outputs = static_cast<int>(weight.outputs),
          .inputs = static_cast<int>(weight.inputs),
          .live_rows = rows.count,
          .multiprocessors = multiprocessors,
          .stream = handle(stream),
          .overlapped = overlapped(stream)};
}

void run_direct(Stream& stream, DenseGemmCall call, const NormsOfCall& norms, DirectRunner runner, const char* op) {
  call.norms = &norms;
  ensure(runner != nullptr, "[", op, "] got a kernel of gemm_configs.h that is not built");
  runner(stream, call);
}

}  // namespace

void dense_gemm(Stream& stream, const LinearParams& params, int config, int multiprocessors) {
  const GemmConfig& chosen = kGemmConfigs[config];
  if (!takes_outputs(chosen, params.weight->outputs)) {
    throw ArgumentError(concat("[linear] got kernel ", gemm_name(config), " for ", params.weight->outputs,
                               " outputs, want a multiple of ", kDirectMultiple, ". Let gemm_select.h choose."));
  }
  DenseGemmCall call = call_of(stream, params.x, params.weight, params.bias, params.y, params.rows, multiprocessors);
  call.residual = params.residual.data;
  call.residual_stride = params.residual.stride;
  if (params.activation == Activation::kLeakyRelu) call.negative_slope = params.negative_slope;
  const NormsOfCall norms{.x = params.x.pending};
  if (chosen.schedule == GemmSchedule::kDirect) {
    return run_direct(stream, call, norms, call.residual == nullptr ? direct_fp8(chosen) : direct_added_fp8(chosen),
                      "linear");
  }
  if (chosen.schedule == GemmSchedule::kSplit) return run_direct(stream, call, norms, split_fp8(chosen), "linear");
  const char* problem = kKernels[static_cast<std::size_t>(config)](call);
  if (problem == nullptr) return;
  throw DeviceError(concat("[linear] got \"", problem, "\" for kernel ", gemm_name(config), " of ", call.rows, " x [",
                           call.outputs, ", ", call.inputs, "], want a launch. Close this engine and report it."));
}

void norm_gemm(Stream& stream, const LinearNormParams& params, int config, int multiprocessors) {
  const LinearParams& product = params.product;
  DenseGemmCall call =
      call_of(stream, product.x, product.weight, product.bias, product.y, product.rows, multiprocessors);
  call.residual = product.residual.data;
  call.residual_stride = product.residual.stride;
  run_direct(stream, call, {.x = product.x.pending, .y = &params}, split_normed_fp8(kGemmConfigs[config]),
             "linear_norm");
}

void swiglu_gemm(Stream& stream, const LinearSwigluParams& params, const Matrix& hidden, int config,
                 int multiprocessors) {
  const DenseGemmCall call =
      call_of(stream, params.x, params.weight, params.bias, hidden, params.rows, multiprocessors);
  run_direct(stream, call, {.x = params.x.pending}, direct_swiglu_fp8(kSwigluConfigs[config]), "linear_swiglu");
}

void swiglu_static_codes_gemm(Stream& stream, const LinearSwigluParams& params, int config, int multiprocessors) {
  DenseGemmCall call = call_of(stream, params.x, params.weight, params.bias, {}, params.rows, multiprocessors);
  call.static_scale = params.quantized.static_scale;
  call.codes = params.quantized.values.data;
  call.codes_stride = params.quantized.values.stride;
  call.code_scales = params.quantized.scales;
  run_direct(stream, call, {.x = params.x.pending}, direct_swiglu_codes_fp8(kSwigluConfigs[config]), "linear_swiglu");
}

void swiglu_codes_gemm(Stream& stream, const LinearSwigluParams& params, int config, int multiprocessors,
                       Workspace workspace) {
  DenseGemmCall call =
      call_of(stream, params.x, params.weight, params.bias, hidden_in_gate_up(params), params.rows, multiprocessors);
  call.progress = workspace.data;
  call.codes = params.quantized.values.data;
  call.codes_stride = params.quantized.values.stride;
  call.code_scales = params.quantized.scales;
  run_direct(stream, call, {.x = params.x.pending}, direct_swiglu_fp8(kSwigluConfigs[config]), "linear_swiglu");
}

}  // namespace onerec::cuda
