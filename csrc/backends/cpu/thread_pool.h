// The CPU stream's threads. They spin for a moment between two pieces of work and then sleep, so that a search is not
// slowed by wake-ups, and neither is a machine that has other things to do: a barrier that spins for milliseconds, as
// OpenMP run-times have it, stalls a search whenever another process holds a processor.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace onerec::cpu {

class ThreadPool {
 public:
  // Starts no thread; the first run() does.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // Calls body(rank) once for every rank in [0, team), rank 0 on the calling thread, any other there too if no thread
  // has begun it by then, and waits for all. team <= threads(). `body` must not throw or call run(). Callers on several
  // threads take turns.
  template <class Body>
  void run(int team, const Body& body) {
    using Target = const Body;
    run_job(team, [](const void* target, int rank) { (*static_cast<Target*>(target))(rank); }, &body);
  }

 private:
  using Call = void (*)(const void* target, int rank);
  struct Worker;

  void run_job(int team, Call call, const void* target);
  void start();
  void work(Worker& worker, int rank);

  const int threads_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Worker>> workers_;
  int forks_seen_ = 0;
  Call call_ = nullptr;
  const void* target_ = nullptr;
  alignas(64) std::atomic<int> pending_{0};
};

// Makes `pool` the one that parallel.h uses on this thread, for a scope.
class PoolScope {
 public:
  explicit PoolScope(ThreadPool& pool);
  ~PoolScope();
  PoolScope(const PoolScope&) = delete;
  PoolScope& operator=(const PoolScope&) = delete;

 private:
  ThreadPool* saved_;
  int saved_library_threads_;
};

// The pool of the innermost PoolScope; only within one.
ThreadPool& current_pool();

}  // namespace onerec::cpu
