// Clusters of two blocks: each may copy to the shared memory of both and arrive at the barriers of both. Device code of
// sm_90a only.
#pragma once

#include "backends/cuda/kernels/async_shared.cuh"

namespace onerec::cuda::kernels {

inline constexpr int kPairBlocks = 2;
inline constexpr std::uint16_t kBothBlocks = 0b11;

// This block's number in its cluster.
__device__ __forceinline__ int rank_in_cluster() {
  std::uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}

// A barrier of every thread of the cluster; what they wrote to shared memory before is visible behind it.
__device__ __forceinline__ void sync_cluster() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

// The address, for arrive_at(), that `shared` has in block `rank` of the cluster.
__device__ __forceinline__ std::uint32_t address_in_block(const void* shared, std::uint32_t rank) {
  std::uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(shared)), "r"(rank));
  return address;
}

// Arrives at a barrier of any block of the cluster. Orders reads of this thread, not writes, for the other block.
__device__ __forceinline__ void arrive_at(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// copy_box() to the same place of both blocks; the bytes count at the same barrier of each.
__device__ __forceinline__ void copy_box_to_both(const CUtensorMap* map, std::uint64_t* barrier, void* shared,
                                                 int column, int row) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(shared)),
      "l"(reinterpret_cast<std::uint64_t>(map)), "r"(shared_address(barrier)), "r"(column), "r"(row), "h"(kBothBlocks)
      : "memory");
}

__device__ __forceinline__ void copy_box_to_both(const CUtensorMap* map, std::uint64_t* barrier, void* shared,
                                                 int column, int plane, int row) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared_address(shared)),
      "l"(reinterpret_cast<std::uint64_t>(map)), "r"(shared_address(barrier)), "r"(column), "r"(plane), "r"(row),
      "h"(kBothBlocks)
      : "memory");
}

// A box at (column, 0, 0, 0, group) of a map with five dimensions, to the same place of every block in `blocks`; the
// bytes count at the same barrier of each.
__device__ __forceinline__ void copy_groups(const CUtensorMap* map, std::uint64_t* barrier, void* shared, int column,
                                            int group, std::uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1, {%3, %4, %4, %4, %5}], [%2], %6;" ::"r"(shared_address(shared)),
      "l"(reinterpret_cast<std::uint64_t>(map)), "r"(shared_address(barrier)), "r"(column), "r"(0), "r"(group),
      "h"(blocks)
      : "memory");
}

// copy_groups() to this block alone.
__device__ __forceinline__ void copy_groups(const CUtensorMap* map, std::uint64_t* barrier, void* shared, int column,
                                            int group) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%3, %4, %4, %4, %5}], [%2];" ::"r"(shared_address(shared)),
      "l"(reinterpret_cast<std::uint64_t>(map)), "r"(shared_address(barrier)), "r"(column), "r"(0), "r"(group)
      : "memory");
}

}  // namespace onerec::cuda::kernels
