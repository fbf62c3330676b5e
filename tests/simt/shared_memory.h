// The shared memory of an emulated block.
#pragma once

#include <cstddef>
#include <vector>

namespace onerec::simt {

inline constexpr int kSharedPoison = 0xff;  // a NaN in each floating-point type, -1 in signed integers

// All `__shared__` arrays. cuda_names.h makes them thread-local variables, which lie side by side in one block of
// memory of the program. While a kernel runs, nothing else in this program uses its thread-local variables on this
// thread: they are kept aside, and are back when this object ends.
class StaticShared {
 public:
  StaticShared();
  ~StaticShared();
  StaticShared(const StaticShared&) = delete;
  StaticShared& operator=(const StaticShared&) = delete;

  void poison();

 private:
  std::byte* begin_ = nullptr;
  std::vector<std::byte> before_;
};

// The dynamic shared memory, with guard bytes on both sides.
class DynamicShared {
 public:
  explicit DynamicShared(std::size_t bytes);

  std::byte* data() { return begin_; }
  void poison();
  bool guards_intact() const;

 private:
  std::size_t bytes_;
  std::vector<std::byte> memory_;
  std::byte* begin_;
};

}  // namespace onerec::simt
