#include "ops/swiglu.h"

#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/kernels/swiglu.cuh"
#include "backends/cuda/launch.h"
#include "backends/cuda/row_launch.h"

namespace onerec::cuda {
namespace {

constexpr const char* kName = "swiglu";
// Vectors of gates, and as many of ups, that a thread holds.
constexpr int kPerThread = 2;
constexpr int kPerThreadOfWholeRow = 4;

// One scale for the row.
bool stays_whole(const SwigluParams& p) {
  return p.quantized.values.data != nullptr && p.quantized.scale_kind == ScaleKind::kPerRow;
}

RowPlan plan_of(const SwigluParams& p) {
  const std::int64_t elements = vector_elements(p.gate_up.dtype);
  const bool fits = p.width % elements == 0 && rows_aligned(p.gate_up, elements) &&
                    (p.y.data == nullptr || rows_aligned(p.y, elements)) &&
                    (p.quantized.values.data == nullptr || rows_aligned(p.quantized.values, elements));
  if (!fits) return {};
  const std::int64_t vectors = p.width / elements;
  if (stays_whole(p)) return plan_whole_rows(vectors, kPerThreadOfWholeRow);
  const RowPlan plan = plan_split_rows(vectors, kPerThread);
  return countable(p.rows.capacity, plan.parts) ? plan : RowPlan{};
}

template <class T>
void launch_swiglu(Stream& stream, const SwigluParams& p, int multiprocessors) {
  const RowPlan plan = plan_of(p);
  const kernels::SwigluArguments arguments{.rows = row_parts(plan, p.rows, p.width / kernels::kVector<T>),
                                           .width = p.width,
                                           .gate_up = p.gate_up.data,
                                           .stride = p.gate_up.stride,
                                           .y = p.y.data,
                                           .y_stride = p.y.stride,
                                           .quantized = code_rows(p.quantized)};
  const LaunchShape shape = row_shape(plan, p.rows, multiprocessors);
  if (plan.threads == 0) return launch(stream, kName, kernels::swiglu_plain_kernel<T>, shape, arguments);
  const auto launch_with = [&](auto team, auto vectors) {
    launch(stream, kName, kernels::swiglu_kernel<T, decltype(team), vectors.value>, shape, arguments);
  };
  if (stays_whole(p)) {
    with_team<kernels::BlockTeam<kWholeRowThreads>, kPerThreadOfWholeRow>(plan, launch_with);
  } else {
    with_team<kernels::BlockTeam<kSplitThreads>, kPerThread>(plan, launch_with);
  }
}

}  // namespace

void CudaBackend::swiglu(Stream& stream, const SwigluParams& params) {
  if (params.gate_up.dtype == DType::kF32) {
    launch_swiglu<float>(stream, params, limits_.multiprocessors);
  } else {
    launch_swiglu<kernels::bf16>(stream, params, limits_.multiprocessors);
  }
}

}  // namespace onerec::cuda
