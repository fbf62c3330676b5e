// How op files issue a kernel: on a stream of this backend, now or into the recording that is under way.
#pragma once

#include <cuda_runtime.h>

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
};

// Every kernel calls kernels::wait_for_previous_kernel() first: it may be started while the kernel before it in the
// stream still runs (programmatic dependent launch), unless the stream says otherwise. A grid without blocks is not
// launched.
template <class... Params, class... Args>
void launch(Stream& stream, const char* name, void (*kernel)(Params...), const LaunchShape& shape, Args&&... args) {
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return;
  constexpr std::size_t kDefaultSharedBytes = 32 * 1024;  // of 48 KiB: the rest is for static arrays
  if (shape.shared_bytes > kDefaultSharedBytes) {
    check(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared_bytes)),
        name);
  }
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = handle(stream);
  config.attrs = &overlap;
  config.numAttrs = overlapped(stream) ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...), name);
}

inline std::uint32_t blocks_for(std::int64_t work, std::int64_t per_block) {
  return static_cast<std::uint32_t>((work + per_block - 1) / per_block);
}

}  // namespace onerec::cuda
