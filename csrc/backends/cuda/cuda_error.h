// CUDA's error codes as exceptions.
#pragma once

#include <cuda_runtime_api.h>

#include "core/error.h"

namespace onerec::cuda {

// Throws PlanMemoryError if memory ran out, DeviceError otherwise. `what`: what was being done, such as "copy to the
// device".
void check(cudaError_t status, const char* what);

}  // namespace onerec::cuda
