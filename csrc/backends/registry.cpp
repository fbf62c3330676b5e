#include "backends/registry.h"

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/gemm.h"
#include "core/error.h"

namespace onerec {

std::unique_ptr<Backend> make_backend(const std::string& device, int threads) {
  if (device == "cpu") return std::make_unique<cpu::CpuBackend>(threads);
  require(device == "cuda", "[engine] got device '", device, "', want 'cpu' or 'cuda'.");
  auto backend = make_cuda_backend();
  if (backend == nullptr)
    throw StateError(concat("[engine] device 'cuda' cannot be had: ", why_no_cuda(), ". Use device='cpu'."));
  return backend;
}

void set_matrix_library(const std::string& path) { cpu::set_openblas_path(path.c_str()); }

}  // namespace onerec
