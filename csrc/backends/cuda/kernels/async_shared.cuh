// Hopper's asynchronous copies into shared memory and the barriers that order them. Device code of sm_90a only.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace onerec::cuda::kernels {

__device__ __forceinline__ std::uint32_t shared_address(const void* shared) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
}

// --- transaction barriers: 8 bytes of shared memory each ---

// A phase of the barrier completes with `arrivals` arrivals and all the bytes that were announced.
__device__ __forceinline__ void init_barrier(std::uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// Behind the last init_barrier and before the barrier of the block that shows the barriers to the other threads.
__device__ __forceinline__ void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void arrive(std::uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Arrives, and makes the phase wait for `bytes` bytes of copies as well.
__device__ __forceinline__ void arrive_expecting(std::uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

// Waits until the phase of this parity is complete. Phases are numbered from 0; the one before the first counts as
// complete.
__device__ __forceinline__ void wait_barrier(std::uint64_t* barrier, std::uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// --- tensor copies ---

__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(reinterpret_cast<std::uint64_t>(map)) : "memory");
}

// One thread copies the map's box at (column, row) to `shared`; `barrier` counts the bytes. What lies outside of the
// tensor arrives as 0, and counts.
__device__ __forceinline__ void copy_box(const CUtensorMap* map, std::uint64_t* barrier, void* shared, int column,
                                         int row) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          shared_address(shared)),
      "l"(reinterpret_cast<std::uint64_t>(map)), "r"(shared_address(barrier)), "r"(column), "r"(row)
      : "memory");
}

// The same for the box at (column, plane, row) of a map with three dimensions.
__device__ __forceinline__ void copy_box(const CUtensorMap* map, std::uint64_t* barrier, void* shared, int column,
                                         int plane, int row) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
      "[%2];" ::"r"(shared_address(shared)),
      "l"(reinterpret_cast<std::uint64_t>(map)), "r"(shared_address(barrier)), "r"(column), "r"(plane), "r"(row)
      : "memory");
}

// Asks for the box that copy_box() with these coordinates would bring, for L2.
__device__ __forceinline__ void prefetch_box(const CUtensorMap* map, int column, int plane, int row) {
  asm volatile(
      "cp.async.bulk.prefetch.tensor.3d.L2.global [%0, {%1, %2, %3}];" ::"l"(reinterpret_cast<std::uint64_t>(map)),
      "r"(column), "r"(plane), "r"(row)
      : "memory");
}

// --- between threads ---

// Makes this thread's ordinary writes to shared memory visible to tensor cores and copies that a barrier orders behind
// them.
__device__ __forceinline__ void publish_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Orders ordinary accesses to global memory before this point, also those that this thread knows of through others, and
// copies behind it.
__device__ __forceinline__ void order_before_copies() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

// A barrier of `threads` threads. `id`: 1 to 15, 0 is __syncthreads.
__device__ __forceinline__ void sync_threads(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Counts this thread at a barrier of `threads` threads without waiting there.
__device__ __forceinline__ void pass_threads(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Changes how many registers the threads of a warpgroup may use; all of them call it.
template <int kRegisters>
__device__ __forceinline__ void give_up_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace onerec::cuda::kernels
