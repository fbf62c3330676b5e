#include "backends/cpu/thread_pool.h"

#include <omp.h>
#include <pthread.h>

#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace onerec::cpu {
namespace {

// Longer than the work between two parallel pieces of a search, far shorter than a scheduler's time slice.
constexpr std::chrono::microseconds kSpin{100};
constexpr std::uint32_t kSleeping = 0;

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until `value` differs from `old`: spinning first, then asleep.
template <class T>
T await_change(std::atomic<T>& value, T old) {
  const auto deadline = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      const T now = value.load(std::memory_order_acquire);
      if (now != old) return now;
      relax();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  value.wait(old, std::memory_order_acquire);
  return value.load(std::memory_order_acquire);
}

// A child of fork() has none of its parent's threads.
std::atomic<int> forks{0};

void watch_forks() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1); });
  (void)registered;
}

thread_local ThreadPool* current = nullptr;

}  // namespace

struct ThreadPool::Worker {
  // Counts the jobs given to this worker; kStop ends it.
  static constexpr std::uint32_t kStop = ~std::uint32_t{0};
  static constexpr std::uint32_t kTaken = kStop - 1;
  alignas(64) std::atomic<std::uint32_t> job{kSleeping};
  // The number of the last job while nobody has begun it. The worker and the caller, when it has nothing else left to
  // do, both try to take it: a worker that no processor has run yet is not waited for.
  std::atomic<std::uint32_t> offer{kTaken};
  std::thread thread;

  bool take(std::uint32_t number) { return offer.compare_exchange_strong(number, kTaken, std::memory_order_acq_rel); }
};

ThreadPool::ThreadPool(int threads) : threads_(threads) { watch_forks(); }

ThreadPool::~ThreadPool() {
  const bool orphaned = forks_seen_ != forks.load();
  for (auto& worker : workers_) {
    if (orphaned) {
      worker->thread.detach();
      continue;
    }
    worker->job.store(Worker::kStop, std::memory_order_release);
    worker->job.notify_one();
    worker->thread.join();
  }
}

void ThreadPool::start() {
  for (auto& worker : workers_) worker->thread.detach();  // of the parent of a fork, if there are any
  workers_.clear();
  forks_seen_ = forks.load();
  for (int rank = 1; rank < threads_; ++rank) {
    Worker& worker = *workers_.emplace_back(std::make_unique<Worker>());
    worker.thread = std::thread([this, &worker, rank] { work(worker, rank); });
  }
}

void ThreadPool::work(Worker& worker, int rank) {
  omp_set_num_threads(1);  // of the matrix library, for calls from this thread
  for (std::uint32_t seen = kSleeping;;) {
    seen = await_change(worker.job, seen);
    if (seen == Worker::kStop) return;
    if (!worker.take(seen)) continue;
    call_(target_, rank);
    if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) pending_.notify_one();
  }
}

void ThreadPool::run_job(int team, Call call, const void* target) {
  std::unique_lock lock(mutex_, std::defer_lock);
  if (team > 1) {
    lock.lock();
    if (workers_.empty() || forks_seen_ != forks.load(std::memory_order_relaxed)) start();
    call_ = call;
    target_ = target;
    pending_.store(team - 1, std::memory_order_relaxed);
    for (int rank = 1; rank < team; ++rank) {
      Worker& worker = *workers_[static_cast<std::size_t>(rank) - 1];
      std::uint32_t number = worker.job.load(std::memory_order_relaxed) + 1;
      if (number >= Worker::kTaken) number = kSleeping;  // past the numbers that have a meaning
      worker.offer.store(number, std::memory_order_release);
      worker.job.store(number, std::memory_order_release);
      worker.job.notify_one();
    }
  }
  call(target, 0);
  if (team <= 1) return;
  for (int rank = 1; rank < team; ++rank) {
    Worker& worker = *workers_[static_cast<std::size_t>(rank) - 1];
    if (!worker.take(worker.job.load(std::memory_order_relaxed))) continue;
    call(target, rank);
    pending_.fetch_sub(1, std::memory_order_acq_rel);
  }
  for (int left = pending_.load(std::memory_order_acquire); left > 0;) left = await_change(pending_, left);
}

PoolScope::PoolScope(ThreadPool& pool) : saved_(current), saved_library_threads_(omp_get_max_threads()) {
  current = &pool;
  omp_set_num_threads(1);  // a call of the matrix library computes on the thread that makes it
}

PoolScope::~PoolScope() {
  current = saved_;
  omp_set_num_threads(saved_library_threads_);
}

ThreadPool& current_pool() { return *current; }

}  // namespace onerec::cpu
