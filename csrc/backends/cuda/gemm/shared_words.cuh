// Words through which warps that run at the same time tell each other how far they are. Device code of sm_90a only.
#pragma once

#include "backends/cuda/kernels/async_shared.cuh"

namespace onerec::cuda::kernels {

// --- in shared memory, for other warps of the block ---

// What this thread did before, and what it knows to have been done, is seen by whoever reads the value.
__device__ __forceinline__ void publish_in_block(std::uint32_t* word, std::uint32_t value) {
  asm volatile("st.release.cta.shared::cta.u32 [%0], %1;" ::"r"(shared_address(word)), "r"(value) : "memory");
}

__device__ __forceinline__ std::uint32_t read_in_block(const std::uint32_t* word) {
  std::uint32_t value;
  asm volatile("ld.acquire.cta.shared::cta.u32 %0, [%1];" : "=r"(value) : "r"(shared_address(word)) : "memory");
  return value;
}

// --- in global memory, for all blocks ---

__device__ __forceinline__ std::uint32_t read_shared_by_blocks(const std::uint32_t* word) {
  std::uint32_t value;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
  return value;
}

// The same; what was published before the value that is read can be seen from here on.
__device__ __forceinline__ std::uint32_t read_published(const std::uint32_t* word) {
  std::uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
  return value;
}

__device__ __forceinline__ void add_shared_by_blocks(std::uint32_t* word, std::uint32_t value) {
  asm volatile("red.relaxed.gpu.global.add.u32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
}

// The same; publishes what this thread did before, and what it knows to have been done.
__device__ __forceinline__ void add_publishing(std::uint32_t* word, std::uint32_t value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
}

__device__ __forceinline__ void raise_shared_by_blocks(std::uint32_t* word, std::uint32_t value) {
  asm volatile("red.relaxed.gpu.global.max.u32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
}

// Adds 1; the value before.
__device__ __forceinline__ std::uint32_t take_shared_by_blocks(std::uint32_t* word) {
  std::uint32_t value;
  asm volatile("atom.relaxed.gpu.global.add.u32 %0, [%1], 1;" : "=r"(value) : "l"(word) : "memory");
  return value;
}

// 16 bytes that another block has written: past the first cache, and not before what stands ahead of it.
__device__ __forceinline__ uint4 read_of_blocks(const void* from) {
  uint4 v;
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from)
               : "memory");
  return v;
}

}  // namespace onerec::cuda::kernels
