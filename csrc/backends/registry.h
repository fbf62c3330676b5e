// The backends of this build. Only the composition root (bindings, tests) includes this.
#pragma once

#include <memory>
#include <string>

#include "ops/backend.h"

namespace onerec {

// "cpu" (threads: 0 = all that the process may use) or "cuda". Throws StateError saying why a backend cannot be had.
std::unique_ptr<Backend> make_backend(const std::string& device, int threads);

// Where the CPU backend finds its matrix library, for builds that load it when it is first needed; others ignore it.
void set_matrix_library(const std::string& path);

// The CUDA backend, or null where this build or machine has none.
std::unique_ptr<Backend> make_cuda_backend();
// Empty if make_cuda_backend() gives one, else the reason.
std::string why_no_cuda();

}  // namespace onerec
