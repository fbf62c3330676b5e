// Where the engine gets the CUDA backend from, and why it may not.
#include "backends/cuda/cuda_backend.h"

#include <cuda_runtime_api.h>

#include "backends/cuda/cuda_device.h"
#include "backends/registry.h"
#include "core/error.h"

namespace onerec {
namespace {

constexpr int kDevice = 0;

}  // namespace

std::string why_no_cuda() {
  int devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&devices);
  if (status != cudaSuccess || devices == 0) {
    const std::string reason = status == cudaSuccess ? "no device" : cudaGetErrorString(status);
    cudaGetLastError();
    return "no usable NVIDIA GPU or driver (" + reason + ")";
  }
  int major = 0;
  int minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, kDevice);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, kDevice);
  if (major != 9 || minor != 0) {
    return concat("the GPU has compute capability ", major, ".", minor, ", this build is for 9.0 (H100, H200)");
  }
  return "";
}

std::unique_ptr<Backend> make_cuda_backend() {
  if (!why_no_cuda().empty()) return nullptr;
  auto device = std::make_unique<cuda::CudaDevice>(kDevice);
  const cuda::DeviceLimits limits{.multiprocessors = device->multiprocessors(), .tensor_cores = true};
  return std::make_unique<cuda::CudaBackend>(std::move(device), limits);
}

}  // namespace onerec
