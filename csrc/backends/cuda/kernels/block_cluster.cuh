// Blocks that run together and send values to the shared memory of the first of them. For the host emulation, which has
// no clusters, this merely compiles.
#pragma once

#include <cstdint>

namespace onerec::cuda::kernels {

#if defined(__CUDA_ARCH__)
__device__ __forceinline__ std::uint32_t own_shared_address(const void* shared) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
}

__device__ __forceinline__ std::uint32_t address_in_first_block(const void* shared) {
  std::uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, 0;" : "=r"(address) : "r"(own_shared_address(shared)));
  return address;
}
#endif

// One thread of the first block, before it comes to the barrier of the cluster: `mail` will count `bytes` bytes.
__device__ __forceinline__ void expect_mail(std::uint64_t* mail, int bytes) {
#if defined(__CUDA_ARCH__)
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(own_shared_address(mail)) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(own_shared_address(mail)), "r"(bytes)
               : "memory");
#else
  (void)mail;
  (void)bytes;
#endif
}

// A barrier of all threads of the cluster, in two parts. Behind it all of its blocks have started.
__device__ __forceinline__ void come_to_cluster_barrier() {
#if defined(__CUDA_ARCH__)
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
#endif
}

__device__ __forceinline__ void wait_at_cluster_barrier() {
#if defined(__CUDA_ARCH__)
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}

// Puts `value` where the first block has what this one has at `place`; its `mail` counts the bytes.
__device__ __forceinline__ void send_to_first_block(float* place, float value, std::uint64_t* mail) {
#if defined(__CUDA_ARCH__)
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(
                   address_in_first_block(place)),
               "f"(value), "r"(address_in_first_block(mail))
               : "memory");
#else
  *place = value;
  (void)mail;
#endif
}

// Every thread of the first block: waits until all the bytes are there.
__device__ __forceinline__ void wait_for_mail(std::uint64_t* mail) {
#if defined(__CUDA_ARCH__)
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], 0;\n"
      "@!done bra again;\n"
      "}" ::"r"(own_shared_address(mail))
      : "memory");
#else
  (void)mail;
#endif
}

}  // namespace onerec::cuda::kernels
