// How many threads a piece of work is worth, and the split of rows among them.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>

namespace onerec::cpu {

// Elements of memory-bound work below which another thread costs more than it saves.
inline constexpr std::int64_t kElementsPerThread = 25'000;

// 1 to the number of threads of this stream.
inline int threads_for(std::int64_t work, std::int64_t work_per_thread) {
  return static_cast<int>(std::clamp<std::int64_t>(work / work_per_thread, 1, omp_get_max_threads()));
}

// Calls body(begin, end) for consecutive ranges that make up [0, rows), one per thread. `body` must not throw; its
// loops belong in a function marked ONEREC_MULTIVERSION, which code inside a parallel region cannot be.
template <class Body>
void for_rows(std::int64_t rows, std::int64_t elements_per_row, Body&& body) {
  const int threads =
      static_cast<int>(std::min<std::int64_t>(threads_for(rows * elements_per_row, kElementsPerThread), rows));
  if (threads <= 1) {
    if (rows > 0) body(std::int64_t{0}, rows);
    return;
  }
#pragma omp parallel num_threads(threads)
  {
    // The runtime may give fewer threads than asked for.
    const std::int64_t team = omp_get_num_threads();
    const std::int64_t rank = omp_get_thread_num();
    const std::int64_t begin = rows * rank / team;
    const std::int64_t end = rows * (rank + 1) / team;
    if (begin < end) body(begin, end);
  }
}

}  // namespace onerec::cpu
