#include "core/arena.h"

#include <algorithm>

#include "core/error.h"

namespace onerec {

void* Arena::allocate(std::size_t bytes) {
  const std::size_t offset = align_up(used_);
  const std::size_t end = offset + align_up(bytes);
  ensure(measuring_ || end <= capacity_, "arena of ", capacity_, " bytes cannot hold ", end);
  used_ = end;
  peak_ = std::max(peak_, used_);
  // A measuring arena hands out distinct non-null addresses, so that null checks hold in both passes.
  if (measuring_) return reinterpret_cast<void*>(kAlignment + offset);
  return base_ + offset;
}

}  // namespace onerec
