// Stands in for the CUDA backend in builds that have none, and says why.
#include "backends/registry.h"
#include "core/build_info.h"

namespace onerec {

std::unique_ptr<Backend> make_cuda_backend() { return nullptr; }

std::string why_no_cuda() { return build_info::kCudaReason; }

}  // namespace onerec
