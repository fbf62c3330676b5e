#include "backends/cuda/cuda_error.h"

namespace onerec::cuda {

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // not sticky: the device goes on
    throw PlanMemoryError(
        concat("[cuda] ", what, ": the device's memory does not suffice. Free memory or ask for less."));
  }
  throw DeviceError(concat("[cuda] ", what, ": ", cudaGetErrorName(status), " (", cudaGetErrorString(status),
                           "). This engine is dead: close it; after a fault in a kernel, restart the process."));
}

}  // namespace onerec::cuda
