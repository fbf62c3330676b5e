// How many threads a piece of work is worth, and its split among them.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "backends/cpu/thread_pool.h"

namespace onerec::cpu {

// Elements of memory-bound work below which another thread costs more than it saves.
inline constexpr std::int64_t kElementsPerThread = 25'000;

// 1 to the number of threads of this stream.
inline int threads_for(std::int64_t work, std::int64_t work_per_thread) {
  return static_cast<int>(std::clamp<std::int64_t>(work / work_per_thread, 1, current_pool().threads()));
}

// Calls body(rank, begin, end) for consecutive ranges that make up [0, rows), one per thread. `body` must not throw.
template <class Body>
void for_ranges(std::int64_t rows, std::int64_t elements_per_row, Body&& body) {
  const std::int64_t team = std::min<std::int64_t>(threads_for(rows * elements_per_row, kElementsPerThread), rows);
  if (team <= 1) {
    if (rows > 0) body(0, std::int64_t{0}, rows);
    return;
  }
  current_pool().run(static_cast<int>(team),
                     [&](int rank) { body(rank, rows * rank / team, rows * (rank + 1) / team); });
}

// The same without the rank.
template <class Body>
void for_rows(std::int64_t rows, std::int64_t elements_per_row, Body&& body) {
  for_ranges(rows, elements_per_row, [&](int, std::int64_t begin, std::int64_t end) { body(begin, end); });
}

// Calls body(rank, task) for every task in [0, tasks), which up to `threads` threads take one by one. `body` must not
// throw.
template <class Body>
void for_tasks(int threads, std::int64_t tasks, Body&& body) {
  const auto team = static_cast<int>(std::min<std::int64_t>(threads, tasks));
  if (team <= 1) {
    for (std::int64_t task = 0; task < tasks; ++task) body(0, task);
    return;
  }
  std::atomic<std::int64_t> next = 0;
  current_pool().run(team, [&](int rank) {
    for (std::int64_t task = next.fetch_add(1, std::memory_order_relaxed); task < tasks;
         task = next.fetch_add(1, std::memory_order_relaxed)) {
      body(rank, task);
    }
  });
}

}  // namespace onerec::cpu
