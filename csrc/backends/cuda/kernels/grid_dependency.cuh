// Programmatic dependent launch: a kernel may be started before its predecessor in the stream has finished.
#pragma once

namespace onerec::cuda::kernels {

// In every thread of every kernel, before any early return and before the first access to memory: all that earlier
// kernels wrote can be read behind it. Only what no kernel writes, such as weights, or what an op's params call settled
// may be read before.
__device__ inline void wait_for_previous_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#elif !defined(__CUDACC__)
  simt_wait_for_previous_kernel();  // the host emulation checks that it was called
#endif
}

// From here on the next kernel may be started, once all blocks of this one have come here (it still waits for the end
// of this one).
__device__ inline void allow_next_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Both, for kernels whose blocks leave room for others. The permission comes first: the kernels that follow a wait are
// then there when it ends, each behind its own wait for the one before it.
__device__ inline void overlap_with_neighbours() {
  allow_next_kernel();
  wait_for_previous_kernel();
}

}  // namespace onerec::cuda::kernels
