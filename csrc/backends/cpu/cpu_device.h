// The CPU as a device: memory is host memory, work is done when issued, a recording is a list of calls.
#pragma once

#include <functional>
#include <utility>
#include <vector>

#include "backends/cpu/thread_pool.h"
#include "ops/device.h"

namespace onerec::cpu {

// Sets the matrix library's thread count on the calling thread for a scope and puts the old one back.
class ThreadScope {
 public:
  explicit ThreadScope(int threads);
  ~ThreadScope();
  ThreadScope(const ThreadScope&) = delete;
  ThreadScope& operator=(const ThreadScope&) = delete;

 private:
  int saved_;
};

class CpuStream final : public Stream {
 public:
  explicit CpuStream(std::shared_ptr<ThreadPool> pool) : pool_(std::move(pool)) {}

  void synchronize() override {}
  void copy_to_device(void* device, const void* host, std::size_t bytes) override;
  void copy_to_host(void* host, const void* device, std::size_t bytes) override;
  void fill(void* device, int value, std::size_t bytes) override;
  void begin_recording() override;
  std::unique_ptr<Recording> end_recording() override;

  // Runs `work` now, or keeps it for replays while recording.
  template <class F>
  void submit(F&& work) {
    if (recording_) {
      recorded_.emplace_back(std::forward<F>(work));
    } else {
      const PoolScope scope(*pool_);
      work();
    }
  }

 private:
  std::shared_ptr<ThreadPool> pool_;
  bool recording_ = false;
  std::vector<std::function<void()>> recorded_;
};

class CpuDevice final : public Device {
 public:
  // threads = 0: one per hardware thread that this process may run on.
  explicit CpuDevice(int threads);

  int threads() const { return pool_->threads(); }
  std::string name() const override;
  std::unique_ptr<Buffer> allocate(std::size_t bytes) override;
  std::unique_ptr<Buffer> allocate_pinned(std::size_t bytes) override { return allocate(bytes); }
  std::unique_ptr<Stream> make_stream() override { return std::make_unique<CpuStream>(pool_); }
  std::size_t available_memory() const override;

 private:
  std::shared_ptr<ThreadPool> pool_;
};

}  // namespace onerec::cpu
