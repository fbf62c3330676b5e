#include "ops/quantize.h"

#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/kernels/quantize.cuh"
#include "backends/cuda/launch.h"
#include "backends/cuda/row_launch.h"

namespace onerec::cuda {
namespace {

constexpr const char* kName = "quantize";
constexpr int kPerThread = 2;  // vectors, of rows of usual widths

RowPlan plan_of(const QuantizeParams& p, int multiprocessors) {
  const std::int64_t elements = vector_elements(p.x.dtype);
  const bool fits =
      p.x.cols % elements == 0 && rows_aligned(p.x, elements) && rows_aligned(p.quantized.values, elements);
  if (!fits) return {};
  const std::int64_t vectors = p.x.cols / elements;
  if (p.x.dtype == DType::kBF16) {
    const RowPlan plan = plan_many_rows(vectors, p.rows, multiprocessors);
    if (is_warp_row(plan)) return plan;
  }
  if (p.quantized.scale_kind == ScaleKind::kPerRow) return plan_whole_rows(vectors, kPerThread);
  const RowPlan plan = plan_split_rows(vectors, kPerThread);
  return countable(p.rows.capacity, plan.parts) ? plan : RowPlan{};
}

template <class T>
void launch_quantize(Stream& stream, const QuantizeParams& p, int multiprocessors) {
  const RowPlan plan = plan_of(p, multiprocessors);
  const kernels::QuantizeArguments arguments{.rows = row_parts(plan, p.rows, p.x.cols / kernels::kVector<T>),
                                             .cols = p.x.cols,
                                             .x = p.x.data,
                                             .x_stride = p.x.stride,
                                             .quantized = code_rows(p.quantized)};
  const LaunchShape shape = row_shape(plan, p.rows, multiprocessors);
  if (plan.threads == 0) return launch(stream, kName, kernels::quantize_plain_kernel<T>, shape, arguments);
  const auto launch_with = [&](auto team, auto vectors_of_thread) {
    launch(stream, kName, kernels::quantize_kernel<T, decltype(team), vectors_of_thread.value>, shape, arguments);
  };
  if constexpr (std::is_same_v<T, kernels::bf16>) {
    if (is_warp_row(plan)) return with_warp_team(plan, launch_with);
  }
  with_team<kernels::BlockTeam<kWholeRowThreads>, kPerThread, 2 * kPerThread>(plan, launch_with);
}

}  // namespace

void CudaBackend::quantize(Stream& stream, const QuantizeParams& params) {
  if (params.x.dtype == DType::kF32) {
    launch_quantize<float>(stream, params, limits_.multiprocessors);
  } else {
    launch_quantize<kernels::bf16>(stream, params, limits_.multiprocessors);
  }
}

}  // namespace onerec::cuda
