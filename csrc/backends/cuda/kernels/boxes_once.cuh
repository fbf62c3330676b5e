// Tensor copies of what is read once: L2 drops it before anything else.
#pragma once

#include "backends/cuda/kernels/async_copy.cuh"
#include "backends/cuda/kernels/async_shared.cuh"

namespace onerec::cuda::kernels {

// copy_box() with these coordinates.
__device__ __forceinline__ void copy_box_once(const CUtensorMap* map, std::uint64_t* barrier, void* shared, int column,
                                              int plane, int row) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %4, "
      "%5}], [%2], %6;" ::"r"(shared_address(shared)),
      "l"(reinterpret_cast<std::uint64_t>(map)), "r"(shared_address(barrier)), "r"(column), "r"(plane), "r"(row),
      "l"(read_once())
      : "memory");
}

// prefetch_box() with these coordinates.
__device__ __forceinline__ void prefetch_box_once(const CUtensorMap* map, int column, int plane, int row) {
  asm volatile("cp.async.bulk.prefetch.tensor.3d.L2.global.L2::cache_hint [%0, {%1, %2, %3}], %4;" ::"l"(
                   reinterpret_cast<std::uint64_t>(map)),
               "r"(column), "r"(plane), "r"(row), "l"(read_once())
               : "memory");
}

}  // namespace onerec::cuda::kernels
