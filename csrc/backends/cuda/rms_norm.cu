#include "ops/rms_norm.h"

#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/kernels/rms_norm.cuh"
#include "backends/cuda/launch.h"
#include "backends/cuda/row_launch.h"

namespace onerec::cuda {
namespace {

constexpr const char* kName = "rms_norm";
constexpr int kPerThread = 2;  // vectors, of rows of usual widths

kernels::Element element_of(const Matrix& y) {
  if (y.data == nullptr) return kernels::Element::kNone;
  return y.dtype == DType::kF32 ? kernels::Element::kF32 : kernels::Element::kBF16;
}

bool fits_vectors(const RmsNormParams& p) {
  const std::int64_t elements = vector_elements(p.x.dtype);
  return p.width % elements == 0 && rows_aligned(p.x, elements) &&
         reinterpret_cast<std::uintptr_t>(p.gamma) % 16 == 0 && countable(p.rows.capacity, p.groups) &&
         (p.y.data == nullptr || rows_aligned(p.y, elements)) &&
         (p.quantized.values.data == nullptr || rows_aligned(p.quantized.values, elements)) &&
         (p.quantized_blocks.values.data == nullptr || rows_aligned(p.quantized_blocks.values, elements));
}

template <class T>
void launch_norm(Stream& stream, const RmsNormParams& p, int multiprocessors) {
  constexpr std::int64_t kElements = kernels::kVector<T>;
  RowPlan plan = fits_vectors(p) ? plan_whole_rows(p.width / kElements, kPerThread) : RowPlan{};
  plan.parts = p.groups;
  const kernels::RmsNormArguments arguments{.rows = row_parts(plan, p.rows, p.groups * p.width / kElements),
                                            .width = p.width,
                                            .inverse_width = 1.0f / static_cast<float>(p.width),
                                            .x = p.x.data,
                                            .x_stride = p.x.stride,
                                            .gamma = p.gamma,
                                            .eps = p.eps,
                                            .y_type = element_of(p.y),
                                            .y = p.y.data,
                                            .y_stride = p.y.stride,
                                            .quantized = code_rows(p.quantized),
                                            .quantized_blocks = code_rows(p.quantized_blocks)};
  const LaunchShape shape = row_shape(plan, p.rows, multiprocessors);
  if (plan.threads == 0) return launch(stream, kName, kernels::rms_norm_plain_kernel<T>, shape, arguments);
  with_team<kernels::BlockTeam<kWholeRowThreads>, kPerThread, 2 * kPerThread>(plan, [&](auto team, auto vectors) {
    launch(stream, kName, kernels::rms_norm_kernel<T, decltype(team), vectors.value>, shape, arguments);
  });
}

}  // namespace

void CudaBackend::rms_norm(Stream& stream, const RmsNormParams& params) {
  if (params.x.dtype == DType::kF32) {
    launch_norm<float>(stream, params, limits_.multiprocessors);
  } else {
    launch_norm<kernels::bf16>(stream, params, limits_.multiprocessors);
  }
}

}  // namespace onerec::cuda
