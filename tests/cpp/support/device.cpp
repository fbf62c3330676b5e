#include "support/device.h"

#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "backends/cpu/cpu_backend.h"
#include "core/arena.h"
#if defined(ONEREC_TEST_SIMT)
#include "simt_device.h"
#endif
#if defined(ONEREC_TEST_CUDA)
#include "backends/registry.h"
#include "support/device_cuda.h"
#endif

namespace onerec::test {
namespace {

[[noreturn]] void give_up(std::string_view reason) {
  std::fprintf(stderr, "ONEREC_TEST_DEVICE: %.*s\n", static_cast<int>(reason.size()), reason.data());
  std::exit(2);
}

TestDevice device_asked_for() {
  const char* const value = std::getenv("ONEREC_TEST_DEVICE");
  const std::string_view name = value == nullptr ? "cpu" : value;
  if (name == "cpu") return TestDevice::kCpu;
  if (name == "simt") {
#if defined(ONEREC_TEST_SIMT)
    return TestDevice::kSimt;
#else
    give_up("this build has no emulation. It needs the CUDA toolkit's headers and ONEREC_CUDA=OFF.");
#endif
  }
  if (name == "cuda") {
#if defined(ONEREC_TEST_CUDA)
    if (!why_no_cuda().empty()) give_up(why_no_cuda());
    return TestDevice::kCuda;
#else
    give_up("this build has no CUDA backend. Build with ONEREC_CUDA=ON.");
#endif
  }
  give_up("want cpu, simt or cuda.");
}

}  // namespace

TestDevice test_device() {
  static const TestDevice device = device_asked_for();
  return device;
}

std::unique_ptr<Backend> make_test_backend(int threads) {
#if defined(ONEREC_TEST_SIMT)
  if (test_device() == TestDevice::kSimt) return make_simt_backend();
#endif
#if defined(ONEREC_TEST_CUDA)
  if (test_device() == TestDevice::kCuda) return make_cuda_backend();
#endif
  return std::make_unique<cpu::CpuBackend>(threads);
}

std::shared_ptr<void> allocate_test_memory(std::size_t bytes) {
#if defined(ONEREC_TEST_CUDA)
  if (test_device() == TestDevice::kCuda) return allocate_managed_memory(bytes);
#endif
  return {std::aligned_alloc(kAlignment, align_up(bytes)), &std::free};
}

}  // namespace onerec::test
