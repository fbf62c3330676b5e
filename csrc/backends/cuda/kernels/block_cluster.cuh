// Blocks that run together and send values to each other's shared memory. For the host emulation, which has no
// clusters, this merely compiles.
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

// One thread of a block that is sent to, before it comes to the barrier of the cluster: `mail` will count `bytes`
// bytes.
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

// The address, for send_four(), that `shared` has in block `rank` of the cluster.
__device__ __forceinline__ std::uint32_t address_in_cluster(const void* shared, int rank) {
  std::uint32_t address = 0;
#if defined(__CUDA_ARCH__)
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(own_shared_address(shared)), "r"(rank));
#else
  (void)shared;
  (void)rank;
#endif
  return address;
}

// Puts four values at `place` of any block of the cluster, whose `mail` counts the bytes.
__device__ __forceinline__ void send_four(std::uint32_t place, std::uint32_t mail, float a, float b, float c, float d) {
#if defined(__CUDA_ARCH__)
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(place),
      "f"(a), "f"(b), "f"(c), "f"(d), "r"(mail)
      : "memory");
#else
  (void)place, (void)mail, (void)a, (void)b, (void)c, (void)d;
#endif
}

// Every thread that reads what was sent: waits until all the bytes are there.
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
