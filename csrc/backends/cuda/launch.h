// How op files issue a kernel: on a stream of this backend, now or into the recording that is under way.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "backends/cuda/cuda_device.h"
#include "backends/cuda/cuda_error.h"

namespace onerec::cuda {

struct LaunchShape {
  dim3 grid;
  dim3 block;
  std::size_t shared_bytes = 0;  // dynamic shared memory
  bool cooperative = false;      // all blocks are there at once, and may wait for each other
  bool overlapped = true;        // may start before the kernel ahead of it has ended, if the stream allows it
};

template <class... Params>
void allow_shared_bytes(const char* name, void (*kernel)(Params...), std::size_t bytes) {
  constexpr std::size_t kDefaultSharedBytes = 32 * 1024;  // of 48 KiB: the rest is for static arrays
  if (bytes <= kDefaultSharedBytes) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), name);
}

// Blocks of a kernel that a multiprocessor holds at a time.
template <class... Params>
int resident_blocks(const char* name, void (*kernel)(Params...), int threads, std::size_t shared_bytes) {
  allow_shared_bytes(name, kernel, shared_bytes);
  int blocks = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes), name);
  return blocks;
}

// Every kernel calls kernels::wait_for_previous_kernel() first: it may be started while the kernel before it in the
// stream still runs (programmatic dependent launch), unless the stream says otherwise. A grid without blocks is not
// launched.
template <class... Params, class... Args>
void launch(Stream& stream, const char* name, void (*kernel)(Params...), const LaunchShape& shape, Args&&... args) {
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return;
  allow_shared_bytes(name, kernel, shape.shared_bytes);
  std::array<cudaLaunchAttribute, 2> attributes{};
  unsigned count = 0;
  if (overlapped(stream) && shape.overlapped) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (shape.cooperative) {
    attributes[count].id = cudaLaunchAttributeCooperative;
    attributes[count++].val.cooperative = 1;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = handle(stream);
  config.attrs = attributes.data();
  config.numAttrs = count;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...), name);
}

inline std::uint32_t blocks_for(std::int64_t work, std::int64_t per_block) {
  return static_cast<std::uint32_t>((work + per_block - 1) / per_block);
}

}  // namespace onerec::cuda
