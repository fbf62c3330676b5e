#include "ops/combine_norm.h"

#include "backends/cuda/combine_params.h"
#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/kernels/combine_norm.cuh"
#include "backends/cuda/launch.h"
#include "backends/cuda/norm_arguments.h"

namespace onerec::cuda {
namespace {

// A thread has several vectors of every vector of h on their way: more threads for a row than its norm alone takes.
constexpr std::int64_t kPerThread = 1;

RowPlan plan_of(const CombineNormParams& p) {
  if (!combines_vectors(p.combine) || !norms_vectors(p.norm)) return {};
  return plan_whole_rows(p.norm.width / vector_elements(p.norm.x.dtype), kPerThread);
}

template <class T>
void launch_combine(Stream& stream, const CombineNormParams& p) {
  const RowPlan plan = plan_of(p);
  const std::int64_t teams = plan.lanes == 0 ? 1 : plan.threads / static_cast<std::uint32_t>(plan.lanes);
  const LaunchShape shape{dim3(blocks_for(p.norm.rows.capacity, teams)), dim3(plan.threads)};
  const kernels::RmsNormArguments norm =
      norm_arguments(p.norm, row_parts(plan, p.norm.rows, p.norm.width / kernels::kVector<T>));
  with_team<kernels::BlockTeam<kWholeRowThreads>, kPerThread, 2 * kPerThread>(plan, [&](auto team, auto vectors) {
    launch(stream, "combine_norm", kernels::combine_norm_kernel<T, decltype(team), vectors.value>, shape,
           combine_params<T>(p.combine), norm);
  });
}

}  // namespace

bool CudaBackend::fuses_combine_norm(const CombineNormParams& params) const { return plan_of(params).threads > 0; }

void CudaBackend::combine_norm(Stream& stream, const CombineNormParams& params) {
  params.norm.x.dtype == DType::kF32 ? launch_combine<float>(stream, params)
                                     : launch_combine<kernels::bf16>(stream, params);
}

}  // namespace onerec::cuda
