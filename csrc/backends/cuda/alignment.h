// What 16-byte accesses and the copy engine need of a matrix.
#pragma once

#include <cstdint>

#include "core/tensor_view.h"

namespace onerec::cuda {

inline bool at_vector(const void* data) { return reinterpret_cast<std::uintptr_t>(data) % 16 == 0; }

// Every row begins at a multiple of 16 bytes.
inline bool rows_at_vectors(const ConstMatrix& m) {
  return at_vector(m.data) && static_cast<std::size_t>(m.stride) * size_of(m.dtype) % 16 == 0;
}

}  // namespace onerec::cuda
