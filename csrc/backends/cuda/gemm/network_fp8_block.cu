#include "backends/cuda/gemm/grouped_launch.cuh"
#include "backends/cuda/gemm/network_kernel.cuh"

namespace onerec::cuda {
namespace {

template <int kTokens>
void run_network(Stream& stream, const RoutedFeedForwardParams& p, int multiprocessors, std::uint32_t* progress) {
  constexpr const char* kOp = "routed_feed_forward";
  using Shape = kernels::NetworkShape<kTokens>;
  const std::int64_t token_tiles = p.first.rows_capacity / kTokens;
  kernels::NetworkParams params{.first = codes_params<typename Shape::First>(kOp, p.first),
                                .second = values_params<typename Shape::Second>(kOp, p.second),
                                .progress = progress};
  params.first.single_tile_experts = single_tile_experts(token_tiles, params.first.experts);
  const std::int64_t tiles = token_tiles * (params.first.columns / Shape::First::kColumns);
  launch(stream, kOp, kernels::network_kernel<Shape>,
         {.grid = dim3(static_cast<unsigned>(std::min<std::int64_t>(tiles, multiprocessors))),
          .block = dim3(Shape::First::kThreads),
          .shared_bytes = Shape::First::kSharedBytes},
         params);
}

}  // namespace

NetworkRunner network_fp8_block(const GroupedConfig& config) {
  switch (config.tokens) {
    case 16:
      return &run_network<16>;
    case 32:
      return &run_network<32>;
    case 64:
      return &run_network<64>;
    default:
      return nullptr;
  }
}

}  // namespace onerec::cuda
