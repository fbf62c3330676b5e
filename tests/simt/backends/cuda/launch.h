// Takes the place of csrc/backends/cuda/launch.h: kernels run on the host, on the emulation's stream.
#pragma once

#include <cstddef>
#include <cstdint>
#include <tuple>

#include "executor.h"
#include "simt_device.h"

namespace onerec::cuda {

struct LaunchShape {
  dim3 grid;
  dim3 block;
  std::size_t shared_bytes = 0;
};

template <class... Params, class... Args>
void launch(Stream& stream, const char* name, void (*kernel)(Params...), const LaunchShape& shape, Args&&... args) {
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return;
  simt::submit(stream, [=, params = std::tuple<Params...>(static_cast<Params>(args)...)] {
    simt::run_kernel({name, shape.grid, shape.block, shape.shared_bytes}, [&] { std::apply(kernel, params); });
  });
}

inline std::uint32_t blocks_for(std::int64_t work, std::int64_t per_block) {
  return static_cast<std::uint32_t>((work + per_block - 1) / per_block);
}

}  // namespace onerec::cuda
