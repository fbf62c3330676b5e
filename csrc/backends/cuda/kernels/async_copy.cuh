// Copies from global to shared memory that a thread waits for later. Each is seen by the thread that asked for it.
#pragma once

#include "backends/cuda/kernels/numeric.cuh"

namespace onerec::cuda::kernels {

// 16 bytes, both addresses multiples of 16. They go past L1, and L2 reads on: for what is read once, in order.
__device__ __forceinline__ void copy_vector_async(uint4* shared, const void* global) {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(
                   static_cast<std::uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(global)
               : "memory");
#else
  *shared = *static_cast<const uint4*>(global);
#endif
}

// How L2 is to keep what is read once: it makes room before anything else does.
__device__ __forceinline__ std::uint64_t read_once() {
  std::uint64_t policy = 0;
#if defined(__CUDA_ARCH__)
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
#endif
  return policy;
}

// copy_vector_async() of what L2 is to keep so.
__device__ __forceinline__ void copy_vector_async(uint4* shared, const void* global, std::uint64_t policy) {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.cg.shared.global.L2::cache_hint.L2::256B [%0], [%1], 16, %2;" ::"r"(
                   static_cast<std::uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(global), "l"(policy)
               : "memory");
#else
  (void)policy;
  copy_vector_async(shared, global);
#endif
}

// copy_vector_async(), or 16 bytes of 0 where there is nothing to read: `global` may then lie anywhere.
__device__ __forceinline__ void copy_vector_or_zero_async(uint4* shared, const void* global, bool present) {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(
                   static_cast<std::uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(global), "r"(present ? 16 : 0)
               : "memory");
#else
  *shared = present ? *static_cast<const uint4*>(global) : uint4{};
#endif
}

// The copies since the last call become a group, if only an empty one.
__device__ __forceinline__ void close_copies() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until all groups of this thread but the last kGroups are there.
template <int kGroups>
__device__ __forceinline__ void wait_for_copies() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
#endif
}

// Asks for `bytes` bytes, for L2; both are multiples of 16.
__device__ __forceinline__ void prefetch_to_l2(const void* global, std::uint32_t bytes) {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global), "r"(bytes) : "memory");
#else
  (void)global;
  (void)bytes;
#endif
}

// The same of what L2 is to keep so.
__device__ __forceinline__ void prefetch_to_l2(const void* global, std::uint32_t bytes, std::uint64_t policy) {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.bulk.prefetch.L2.global.L2::cache_hint [%0], %1, %2;" ::"l"(global), "r"(bytes), "l"(policy)
               : "memory");
#else
  (void)global;
  (void)bytes;
  (void)policy;
#endif
}

// The same of the whole block, in pieces: the copy engine takes about as long for one of 2 KB as for one of 8.
__device__ __forceinline__ void prefetch_all_to_l2(const void* global, std::int64_t bytes, std::uint64_t policy) {
  constexpr std::int64_t kPiece = 16 * 1024;
  for (std::int64_t at = threadIdx.x * kPiece; at < bytes; at += blockDim.x * kPiece) {
    const std::int64_t left = bytes - at;
    prefetch_to_l2(static_cast<const char*>(global) + at, static_cast<std::uint32_t>(left < kPiece ? left : kPiece),
                   policy);
  }
}

}  // namespace onerec::cuda::kernels
