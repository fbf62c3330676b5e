#include <algorithm>

#include "backends/cuda/alignment.h"
#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/cuda_weight.h"
#include "backends/cuda/kernels/linear_route.cuh"
#include "backends/cuda/launch.h"
#include "core/error.h"
#include "ops/linear_route.h"

namespace onerec::cuda {
namespace {

constexpr const char* kOp = "route";
// Up to here one block takes no longer than a second kernel would cost.
constexpr std::int64_t kSmallRows = 64;
constexpr std::int64_t kSmallExperts = 256;
// Every block of the second kernel reads the counts of all chunks.
constexpr std::int64_t kMaxChunks = 256;
// A chunk's rows are a multiple of the warps that route it.
constexpr std::int64_t kChunkStep = kernels::kRouteThreads / kernels::kWarp;

bool is_small(const RouteParams& p) { return p.rows.capacity <= kSmallRows && p.experts <= kSmallExperts; }

std::int64_t chunk_rows_of(const RouteParams& p) {
  constexpr std::int64_t kRowsPerStep = kChunkStep * kMaxChunks;
  return std::max<std::int64_t>((p.rows.capacity + kRowsPerStep - 1) / kRowsPerStep, 1) * kChunkStep;
}

std::int64_t chunks_of(const RouteParams& p) {
  const std::int64_t rows = chunk_rows_of(p);
  return std::max<std::int64_t>((p.rows.capacity + rows - 1) / rows, 1);
}

kernels::RouterParams router_params(const RouteParams& p, void* counts) {
  return {.logits = static_cast<const float*>(p.logits.data),
          .logits_stride = p.logits.stride,
          .bias = p.bias,
          .experts = static_cast<int>(p.experts),
          .top_k = static_cast<int>(p.top_k),
          .softmax = p.score == RouterScore::kSoftmax,
          .normalize = p.normalize == RouterNormalize::kSum,
          .scaling_factor = p.scaling_factor,
          .alignment = static_cast<int>(p.alignment),
          .selected = p.selected,
          .weights = p.weights,
          .offsets = p.offsets,
          .slots = p.slots,
          .sources = p.sources,
          .counts = static_cast<std::int32_t*>(counts),
          .chunk_rows = static_cast<int>(chunk_rows_of(p)),
          .rows = p.rows.capacity,
          .count = p.rows.count};
}

template <int kSlots>
void route_chunks(Stream& stream, const kernels::RouterParams& params, unsigned chunks) {
  launch(stream, kOp, kernels::route_chunks_kernel<kSlots>,
         {dim3(chunks), dim3(kernels::kRouteThreads), static_cast<std::size_t>(params.experts) * sizeof(int)}, params);
}

std::size_t place_bytes(const kernels::RouterParams& params) {
  return static_cast<std::size_t>(kernels::place_shared_ints(params.experts)) * sizeof(int);
}

template <int kSlots>
void route_small(Stream& stream, const kernels::RouterParams& params) {
  launch(stream, kOp, kernels::route_small_kernel<kSlots>,
         {dim3(1), dim3(kernels::kRouteSmallThreads), place_bytes(params)}, params);
}

void place_chunks(Stream& stream, const kernels::RouterParams& params, unsigned chunks) {
  launch(stream, kOp, kernels::place_chunks_kernel, {dim3(chunks), dim3(kernels::kPlaceThreads), place_bytes(params)},
         params);
}

// Every block of the product reads all weights: the gain shrinks with the rows, and more of them were not measured.
constexpr std::int64_t kMostRowsAtOnce = 2048;
// A block's rows lie in shared memory.
constexpr std::int64_t kMostInputsAtOnce = 4096;

}  // namespace

std::size_t CudaBackend::route_workspace(const RouteParams& params) const {
  require(params.experts <= kernels::kRouteMaxExperts, "[route] got ", params.experts, " experts, want at most ",
          kernels::kRouteMaxExperts, " on this device. Use device 'cpu'.");
  require(params.top_k <= kernels::kRouteMaxTopK, "[route] got top_k = ", params.top_k, ", want at most ",
          kernels::kRouteMaxTopK, " on this device. Use device 'cpu'.");
  if (is_small(params)) return 0;
  return static_cast<std::size_t>(chunks_of(params) * params.experts) * sizeof(std::int32_t);
}

void CudaBackend::route(Stream& stream, const RouteParams& params, Workspace workspace) {
  const kernels::RouterParams router = router_params(params, workspace.data);
  const bool two_slots = router.experts <= 2 * kernels::kWarp;
  if (is_small(params)) {
    two_slots ? route_small<2>(stream, router) : route_small<8>(stream, router);
    return;
  }
  const auto chunks = static_cast<unsigned>(chunks_of(params));
  if (two_slots) {
    route_chunks<2>(stream, router, chunks);
  } else if (router.experts <= 8 * kernels::kWarp) {
    route_chunks<8>(stream, router, chunks);
  } else {
    route_chunks<kernels::kRouteMaxExperts / kernels::kWarp>(stream, router, chunks);
  }
  place_chunks(stream, router, chunks);
}

bool CudaBackend::fuses_linear_route(const LinearRouteParams& params) const {
  const LinearParams& product = params.product;
  const LinearWeight& weight = *product.weight;
  const RouteParams& p = params.route;
  return weight.format == WeightFormat::kDense && weight.dtype == DType::kBF16 && product.bias == nullptr &&
         product.residual.data == nullptr && product.activation == Activation::kNone &&
         weight.outputs <= kernels::kRouterExperts && weight.inputs % kernels::kRouterStep == 0 &&
         weight.inputs <= kMostInputsAtOnce && rows_at_vectors(product.x.values) &&
         at_vector(weight_of(&weight).values()) && !is_small(p) && p.rows.capacity <= kMostRowsAtOnce &&
         chunk_rows_of(p) == kernels::kRouterRows;
}

void CudaBackend::linear_route(Stream& stream, const LinearRouteParams& params, Workspace workspace) {
  const LinearWeight& weight = *params.product.weight;
  const kernels::RouterProduct product{.x = static_cast<const kernels::bf16*>(params.product.x.values.data),
                                       .x_stride = params.product.x.values.stride,
                                       .weights = static_cast<const kernels::bf16*>(weight_of(&weight).values()),
                                       .outputs = static_cast<int>(weight.outputs),
                                       .inputs = static_cast<int>(weight.inputs)};
  const kernels::RouterParams router = router_params(params.route, workspace.data);
  const auto chunks = static_cast<unsigned>(chunks_of(params.route));
  launch(stream, "linear_route", kernels::linear_route_kernel,
         {dim3(chunks), dim3(kernels::kRouteThreads), kernels::RouterShared::bytes(product.inputs, router.experts)},
         product, router);
  place_chunks(stream, router, chunks);
}

}  // namespace onerec::cuda
