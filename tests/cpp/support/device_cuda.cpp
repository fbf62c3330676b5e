#include "support/device_cuda.h"

#include <cuda_runtime_api.h>

#include <new>

namespace onerec::test {

std::shared_ptr<void> allocate_managed_memory(std::size_t bytes) {
  void* memory = nullptr;
  if (cudaMallocManaged(&memory, bytes) != cudaSuccess) throw std::bad_alloc();
  return {memory, [](void* address) {
            cudaDeviceSynchronize();  // freeing does not wait for kernels
            cudaFree(address);
          }};
}

}  // namespace onerec::test
