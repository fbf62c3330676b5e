// A bump allocator over one block of memory whose size is found by running the same layout code without a block.
#pragma once

#include <cstddef>
#include <cstdint>

namespace onerec {

// Every allocation starts at a multiple of this.
inline constexpr std::size_t kAlignment = 256;

constexpr std::size_t align_up(std::size_t value, std::size_t alignment = kAlignment) {
  return (value + alignment - 1) / alignment * alignment;
}

class Arena {
 public:
  // Measures: addresses are valid for arithmetic only and must not be dereferenced.
  Arena() = default;
  // Hands out [base, base + capacity); `base` is aligned to kAlignment.
  Arena(void* base, std::size_t capacity)
      : base_(static_cast<std::byte*>(base)), capacity_(capacity), measuring_(false) {}

  bool measuring() const { return measuring_; }
  std::size_t used() const { return used_; }
  std::size_t peak() const { return peak_; }

  // Uninitialised memory. Throws InternalError when the block is too small.
  void* allocate(std::size_t bytes);

  template <class T>
  T* allocate_array(std::int64_t count) {
    return static_cast<T*>(allocate(static_cast<std::size_t>(count) * sizeof(T)));
  }

  // Where the next allocation will start.
  void* next() const {
    return measuring_ ? reinterpret_cast<void*>(kAlignment + align_up(used_))
                      : static_cast<void*>(base_ + align_up(used_));
  }

  // Frees everything allocated after `mark` was taken with used().
  void rewind(std::size_t mark) { used_ = mark; }

 private:
  std::byte* base_ = nullptr;
  std::size_t capacity_ = 0;
  std::size_t used_ = 0;
  std::size_t peak_ = 0;
  bool measuring_ = true;
};

}  // namespace onerec
