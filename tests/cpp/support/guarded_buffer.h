// Test memory that notices stray writes: guard bytes on both sides, contents poisoned until they are written.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <vector>

#include "core/arena.h"
#include "support/device.h"

namespace onerec::test {

// Every byte of a fresh buffer: a NaN in each floating-point type, -1 in signed integers.
inline constexpr unsigned char kPoison = 0xff;

// Aligned to kAlignment, like device memory; the test device and the host both address it. Host and device take turns:
// whoever issued work synchronises its stream before the contents are looked at.
class GuardedBuffer {
 public:
  explicit GuardedBuffer(std::size_t bytes)
      : bytes_(bytes), block_(allocate_test_memory(kGuard + align_up(bytes + kGuard))) {
    std::memset(data() - kGuard, kGuardByte, kGuard);
    std::memset(data() + bytes_, kGuardByte, kGuard);
    poison();
  }

  unsigned char* data() const { return static_cast<unsigned char*>(block_.get()) + kGuard; }
  std::size_t bytes() const { return bytes_; }

  void poison() { std::memset(data(), kPoison, bytes_); }
  std::vector<unsigned char> snapshot() const { return {data(), data() + bytes_}; }
  void restore(const std::vector<unsigned char>& contents) { std::copy(contents.begin(), contents.end(), data()); }

  bool guards_intact() const {
    const auto intact = [](const unsigned char* begin) {
      return std::all_of(begin, begin + kGuard, [](unsigned char byte) { return byte == kGuardByte; });
    };
    return intact(data() - kGuard) && intact(data() + bytes_);
  }

 private:
  static constexpr std::size_t kGuard = kAlignment;
  static constexpr unsigned char kGuardByte = 0xa5;

  std::size_t bytes_;
  std::shared_ptr<void> block_;
};

}  // namespace onerec::test
