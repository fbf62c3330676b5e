// A barrier for all blocks of a grid. They have to be there at once: for cooperative launches alone.
#pragma once

#include <cstdint>

namespace onerec::cuda::kernels {

// Blocks count in one word of global memory: block 0 adds 2^31 less the number of the others, who add 1. When all have
// come, the top bit has changed and the other bits are 0 again, so that neither the next barrier nor the next launch
// has to reset anything. The word starts at 0 and is used by one grid at a time.
//
// What a block's threads wrote before they arrived can be read by every thread that has waited, but not through loads
// that the compiler may take from the cache of constants (__ldg).
class GridBarrier {
 public:
  static constexpr std::uint32_t kPhase = 0x80000000u;

  // One dimension of blocks. `thread`: of the block, the one that arrives and looks.
  __device__ __forceinline__ GridBarrier(std::uint32_t* word, int thread)
      : word_(word), mine_(static_cast<int>(threadIdx.x) == thread) {}

  // To be called once, behind wait_for_previous_kernel(): the word may be in use until then.
  __device__ __forceinline__ void begin() {
    if (mine_) phase_ = load() & kPhase;  // it cannot change before this block arrives
  }

  // Every thread of the block calls it; none waits for other blocks.
  __device__ __forceinline__ void arrive() {
    __syncthreads();
    if (mine_) add(blockIdx.x == 0 ? kPhase - (gridDim.x - 1) : 1);
  }

  // Every thread of the block calls it, once behind every arrive().
  __device__ __forceinline__ void wait() {
    if (mine_) {
      phase_ ^= kPhase;
      while ((load() & kPhase) != phase_) pause();
    }
    __syncthreads();
  }

 private:
  __device__ __forceinline__ std::uint32_t load() const {
#if defined(__CUDA_ARCH__)
    std::uint32_t value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(word_) : "memory");
    return value;
#else
    return *word_;
#endif
  }

  __device__ __forceinline__ void add(std::uint32_t value) const {
#if defined(__CUDA_ARCH__)
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(word_), "r"(value) : "memory");
#else
    *word_ += value;
#endif
  }

  __device__ __forceinline__ static void pause() {
#if !defined(__CUDACC__)
    simt_poll();  // the host emulation runs another thread
#endif
  }

  std::uint32_t* word_;
  bool mine_;
  std::uint32_t phase_ = 0;
};

}  // namespace onerec::cuda::kernels
