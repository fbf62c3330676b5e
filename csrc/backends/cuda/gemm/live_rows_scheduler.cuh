// A tile scheduler for CUTLASS's persistent Hopper kernels that reads the number of live rows from device memory and
// hands out no tile behind them. (The live rows of a batch are few where its capacity is a bucket's.)
#pragma once

#include <cutlass/gemm/kernel/tile_scheduler.hpp>

#include "backends/cuda/kernels/grid_dependency.cuh"

namespace onerec::cuda {
struct LiveRows {};  // the scheduler's tag
}  // namespace onerec::cuda

namespace cutlass::gemm::kernel::detail {

// Tiles of neighbouring rows come first, so that thread blocks that run together share what they read of W. Bands of
// at most kBandRows rows: what they read of x then stays in L2 while the outputs go by.
class LiveRowsScheduler : public PersistentTileSchedulerSm90 {
  using Base = PersistentTileSchedulerSm90;
  using BaseArguments = Base::Arguments;
  using BaseParams = Base::Params;
  static constexpr int kBandRows = 2048;

 public:
  struct Arguments : BaseArguments {
    const int32_t* live_rows = nullptr;  // null: all rows of the problem
  };
  struct Params : BaseParams {
    const int32_t* live_rows = nullptr;
    uint32_t rows = 0;
    uint32_t cluster = 1;       // row tiles of a cluster
    uint32_t cluster_rows = 1;  // their rows
    uint32_t columns = 0;       // tiles along N
    uint32_t band = 1;          // clusters of a band, along M
    uint32_t grid = 0;          // clusters that are launched
  };

  template <class Shape, class Tile, class Cluster>
  static Params to_underlying_arguments(Shape shape, Tile tile, Cluster cluster, const KernelHardwareInfo& hardware,
                                        const Arguments& arguments, void* workspace = nullptr,
                                        uint32_t epilogue_subtile = 1, uint32_t alignment = 1) {
    static_assert(cute::size<1>(Cluster{}) == 1 && cute::size<2>(Cluster{}) == 1, "clusters lie along M");
    Params params;
    BaseParams& base = params;
    base = Base::to_underlying_arguments(shape, tile, cluster, hardware, arguments, workspace, epilogue_subtile,
                                         alignment);
    params.live_rows = arguments.live_rows;
    params.rows = static_cast<uint32_t>(cute::get<0>(shape));
    params.cluster = cute::size<0>(Cluster{});
    params.cluster_rows = static_cast<uint32_t>(cute::size<0>(tile)) * params.cluster;
    params.columns = static_cast<uint32_t>(cute::ceil_div(cute::get<1>(shape), cute::size<1>(tile)));
    params.band = kBandRows / params.cluster_rows;
    const uint32_t clusters = cute::ceil_div(params.rows, params.cluster_rows) * params.columns;
    const uint32_t resident = static_cast<uint32_t>(hardware.sm_count) / params.cluster;
    params.grid = clusters < resident ? clusters : resident;
    return params;
  }

  template <class Shape, class Tile, class Cluster>
  static dim3 get_grid_shape(const Params& params, Shape, Tile, Cluster, KernelHardwareInfo, BaseArguments = {},
                             bool = true) {
    return dim3(params.grid * params.cluster);
  }

  LiveRowsScheduler() = default;
  CUTLASS_DEVICE explicit LiveRowsScheduler(const Params& params) : params_(&params) {
#if defined(__CUDA_ARCH__)
    // All warps pass here before they read or write anything that another kernel writes.
    onerec::cuda::kernels::wait_for_previous_kernel();
    const uint32_t rows = params.live_rows == nullptr ? params.rows : static_cast<uint32_t>(*params.live_rows);
    row_clusters_ = cute::ceil_div(rows, params.cluster_rows);
    next_ = blockIdx.x / params.cluster;
#endif
  }

  template <class Cluster>
  CUTLASS_DEVICE WorkTileInfo initial_work_tile_info(Cluster) const {
    return get_current_work();
  }
  CUTLASS_DEVICE WorkTileInfo get_current_work() const { return tile(next_); }
  CUTLASS_DEVICE void advance_to_next_work(uint32_t count = 1) { next_ += params_->grid * count; }
  CUTLASS_DEVICE bool is_last_tile(WorkTileInfo&, uint32_t count = 1) const {
    return !tile(next_ + params_->grid * count).is_valid();
  }
  CUTLASS_DEVICE auto fetch_next_work(WorkTileInfo) {
    advance_to_next_work();
    return cute::make_tuple(get_current_work(), true);
  }
  template <class Pipeline, class State>
  CUTLASS_DEVICE auto fetch_next_work(WorkTileInfo work, Pipeline&, State) {
    return fetch_next_work(work);
  }

 private:
  CUTLASS_DEVICE WorkTileInfo tile(uint32_t index) const {
    if (index >= row_clusters_ * params_->columns) return WorkTileInfo::invalid_work_tile();
    const uint32_t per_band = params_->band * params_->columns;
    const uint32_t first = index / per_band * params_->band;
    const uint32_t rest = index % per_band;
    const uint32_t height = cute::min(params_->band, row_clusters_ - first);
    const uint32_t row = (first + rest % height) * params_->cluster + cute::block_id_in_cluster().x;
    return {static_cast<int32_t>(row), static_cast<int32_t>(rest / height), 0, true};
  }

  const Params* params_ = nullptr;
  uint32_t row_clusters_ = 0;  // with a live row
  uint32_t next_ = 0;
};

template <class TileShape, class ClusterShape, uint32_t Stages>
struct TileSchedulerSelector<onerec::cuda::LiveRows, arch::Sm90, TileShape, ClusterShape, Stages> {
  using Scheduler = LiveRowsScheduler;
};

}  // namespace cutlass::gemm::kernel::detail
