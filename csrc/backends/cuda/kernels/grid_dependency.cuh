// Programmatic dependent launch: a kernel may be started before its predecessor in the stream has finished.
#pragma once

namespace onerec::cuda::kernels {

// The first statement of every kernel, in every thread, before any early return: all that earlier kernels wrote can be
// read behind it. Only weights, which no kernel writes, may be asked for before.
__device__ inline void wait_for_previous_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#elif !defined(__CUDACC__)
  simt_wait_for_previous_kernel();  // the host emulation checks that it was called
#endif
}

// From here on the next kernel may be started (it still waits for the end of this one).
__device__ inline void allow_next_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace onerec::cuda::kernels
