// The device that the tests of ops and of the engine run on: the environment variable ONEREC_TEST_DEVICE says cpu (the
// default), simt (the CUDA backend emulated on the host, see tests/simt) or cuda.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "ops/backend.h"

namespace onerec::test {

enum class TestDevice { kCpu, kSimt, kCuda };

// Ends the program with a message if this build does not have the device.
TestDevice test_device();

// `threads`: of the CPU's pool; other devices have no use for it.
std::unique_ptr<Backend> make_test_backend(int threads);

// Memory that both the host and the device address, aligned to kAlignment.
std::shared_ptr<void> allocate_test_memory(std::size_t bytes);

// A size that takes the emulation too long is cut there.
inline std::int64_t at_most_on_simt(std::int64_t size, std::int64_t most) {
  return test_device() == TestDevice::kSimt && size > most ? most : size;
}

}  // namespace onerec::test

// For tests of what the CPU backend has inside.
#define ONEREC_CPU_ONLY()                                            \
  if (onerec::test::test_device() != onerec::test::TestDevice::kCpu) \
  GTEST_SKIP() << "tests the inside of the CPU backend"
