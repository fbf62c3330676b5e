// Only in builds with the CUDA backend.
#pragma once

#include <cstddef>
#include <memory>

namespace onerec::test {

std::shared_ptr<void> allocate_managed_memory(std::size_t bytes);

}  // namespace onerec::test
