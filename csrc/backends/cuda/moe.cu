#include "ops/moe.h"

#include <algorithm>

#include "backends/cuda/combine_params.h"
#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/gather_rows.h"
#include "backends/cuda/kernels/moe.cuh"
#include "backends/cuda/launch.h"
#include "core/error.h"

namespace onerec::cuda {
namespace {

constexpr const char* kGather = "gather_rows";
constexpr const char* kCombine = "moe_combine";

std::int64_t stride_bytes(const ConstMatrix& m) { return m.stride * static_cast<std::int64_t>(size_of(m.dtype)); }

// Every row starts at a multiple of `bytes`.
bool rows_aligned(const ConstMatrix& m, std::int64_t bytes) {
  return reinterpret_cast<std::uintptr_t>(m.data) % static_cast<std::uintptr_t>(bytes) == 0 &&
         stride_bytes(m) % bytes == 0;
}

kernels::GatherParams gather_params(const GatherRowsParams& p, const ClearedWords& cleared) {
  kernels::GatherParams gather{.x = static_cast<const std::uint8_t*>(p.x.values.data),
                               .x_stride = stride_bytes(p.x.values),
                               .sorted = static_cast<std::uint8_t*>(p.sorted.values.data),
                               .sorted_stride = stride_bytes(p.sorted.values),
                               .row_bytes = p.x.values.cols * static_cast<std::int64_t>(size_of(p.x.values.dtype)),
                               .x_scales = p.x.scales,
                               .x_scale_stride = p.x.scale_stride,
                               .sorted_scales = p.sorted.scales,
                               .sorted_scale_stride = p.sorted.scale_stride,
                               .scale_blocks = 0,
                               .sources = p.sources,
                               .rows = p.sorted_rows.capacity,
                               .count = p.sorted_rows.count,
                               .cleared = cleared.data,
                               .cleared_words = cleared.count};
  if (p.x.scale_kind == ScaleKind::kPerRow) gather.scale_blocks = 1;
  if (p.x.scale_kind == ScaleKind::kPerBlock) gather.scale_blocks = static_cast<int>(scale_blocks(p.x.values.cols));
  return gather;
}

template <class T, int kColumns>
void combine(Stream& stream, const MoeCombineParams& p) {
  const std::int64_t pieces = p.h.cols / kColumns;
  const std::int64_t warps = std::clamp<std::int64_t>((pieces + kernels::kWarp - 1) / kernels::kWarp, 1,
                                                      kernels::kCombineMaxThreads / kernels::kWarp);
  launch(stream, kCombine, kernels::moe_combine_kernel<T, kColumns>,
         {dim3(static_cast<unsigned>(p.rows.capacity)), dim3(static_cast<unsigned>(warps * kernels::kWarp))},
         combine_params<T>(p));
}

template <class T>
void combine_as(Stream& stream, const MoeCombineParams& p) {
  combines_vectors(p) ? combine<T, kernels::kVector<T>>(stream, p) : combine<T, 1>(stream, p);
}

}  // namespace

void gather_and_clear(Stream& stream, const GatherRowsParams& params, const ClearedWords& cleared) {
  const kernels::GatherParams gather = gather_params(params, cleared);
  const LaunchShape shape{dim3(blocks_for(gather.rows, kernels::kGatherRows)), dim3(kernels::kGatherThreads)};
  const std::int64_t threads = std::int64_t{shape.grid.x} * shape.block.x;
  require(cleared.count <= threads, "[gather_rows] got ", cleared.count, " words to clear, want at most ", threads,
          " beside ", gather.rows, " rows. Clear them on their own.");
  const auto aligned = [&](std::int64_t bytes) {
    return rows_aligned(params.x.values, bytes) && rows_aligned(params.sorted.values, bytes);
  };
  if (aligned(16)) {
    launch(stream, kGather, kernels::gather_rows_kernel<uint4>, shape, gather);
  } else if (aligned(4)) {
    launch(stream, kGather, kernels::gather_rows_kernel<std::uint32_t>, shape, gather);
  } else {
    launch(stream, kGather, kernels::gather_rows_kernel<std::uint8_t>, shape, gather);
  }
}

void CudaBackend::gather_rows(Stream& stream, const GatherRowsParams& params) { gather_and_clear(stream, params, {}); }

void CudaBackend::moe_combine(Stream& stream, const MoeCombineParams& params) {
  params.h.dtype == DType::kF32 ? combine_as<float>(stream, params) : combine_as<kernels::bf16>(stream, params);
}

}  // namespace onerec::cuda
