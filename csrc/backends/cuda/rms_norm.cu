#include "ops/rms_norm.h"

#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/launch.h"
#include "backends/cuda/norm_arguments.h"

namespace onerec::cuda {
namespace {

constexpr const char* kName = "rms_norm";
constexpr int kPerThread = 2;  // vectors, of rows of usual widths

template <class T>
void launch_norm(Stream& stream, const RmsNormParams& p, int multiprocessors) {
  constexpr std::int64_t kElements = kernels::kVector<T>;
  constexpr bool kWarpRows = std::is_same_v<T, kernels::bf16>;
  const std::int64_t vectors = p.width / kElements;
  RowPlan plan;
  if (norms_vectors(p)) {
    plan = kWarpRows && p.groups == 1 ? plan_many_rows(vectors, p.rows, multiprocessors)
                                      : plan_whole_rows(vectors, kPerThread);
  }
  plan.parts = p.groups;
  const kernels::RmsNormArguments arguments =
      norm_arguments(p, row_parts(plan, p.rows, p.groups * p.width / kElements));
  LaunchShape shape = row_shape(plan, p.rows, multiprocessors);
  if (plan.threads == 0) return launch(stream, kName, kernels::rms_norm_plain_kernel<T>, shape, arguments);
  if constexpr (kWarpRows) {
    if (is_warp_row(plan)) {
      return with_warp_team(plan, [&](auto team, auto vectors_of_lane) {
        constexpr int kVectors = vectors_of_lane.value;
        shape.shared_bytes = kernels::NormFactors<decltype(team), kVectors, kElements>::kBytes;
        launch(stream, kName, kernels::rms_norm_kernel<T, decltype(team), kVectors>, shape, arguments);
      });
    }
  }
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
