#include "backends/cpu/cpu_device.h"

#include <omp.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <new>
#include <string>

#include "core/arena.h"
#include "core/error.h"

namespace onerec::cpu {
namespace {

class CpuBuffer final : public Buffer {
 public:
  explicit CpuBuffer(std::size_t bytes)
      : bytes_(bytes), data_(std::aligned_alloc(kAlignment, align_up(bytes == 0 ? 1 : bytes))) {
    if (data_ == nullptr)
      throw PlanMemoryError(concat("[memory] could not allocate ", bytes, " bytes. Free memory or ask for less."));
  }
  ~CpuBuffer() override { std::free(data_); }
  CpuBuffer(const CpuBuffer&) = delete;
  CpuBuffer& operator=(const CpuBuffer&) = delete;

  void* data() const override { return data_; }
  std::size_t bytes() const override { return bytes_; }

 private:
  std::size_t bytes_;
  void* data_;
};

class CpuRecording final : public Recording {
 public:
  CpuRecording(std::shared_ptr<ThreadPool> pool, std::vector<std::function<void()>> calls)
      : pool_(std::move(pool)), calls_(std::move(calls)) {}

  void replay(Stream&) override {
    const PoolScope scope(*pool_);
    for (const auto& call : calls_) call();
  }

 private:
  std::shared_ptr<ThreadPool> pool_;
  std::vector<std::function<void()>> calls_;
};

}  // namespace

ThreadScope::ThreadScope(int threads) : saved_(omp_get_max_threads()) { omp_set_num_threads(threads); }

ThreadScope::~ThreadScope() { omp_set_num_threads(saved_); }

void CpuStream::copy_to_device(void* device, const void* host, std::size_t bytes) {
  submit([=] { std::memcpy(device, host, bytes); });
}

void CpuStream::copy_to_host(void* host, const void* device, std::size_t bytes) {
  submit([=] { std::memcpy(host, device, bytes); });
}

void CpuStream::fill(void* device, int value, std::size_t bytes) {
  submit([=] { std::memset(device, value, bytes); });
}

void CpuStream::begin_recording() {
  ensure(!recording_, "a stream records one sequence at a time");
  recording_ = true;
}

std::unique_ptr<Recording> CpuStream::end_recording() {
  ensure(recording_, "end_recording() without begin_recording()");
  recording_ = false;
  return std::make_unique<CpuRecording>(pool_, std::move(recorded_));
}

CpuDevice::CpuDevice(int threads) : pool_(std::make_shared<ThreadPool>(threads > 0 ? threads : omp_get_num_procs())) {}

std::string CpuDevice::name() const { return concat("cpu (", threads(), threads() == 1 ? " thread)" : " threads)"); }

std::unique_ptr<Buffer> CpuDevice::allocate(std::size_t bytes) { return std::make_unique<CpuBuffer>(bytes); }

std::size_t CpuDevice::available_memory() const {
  // MemAvailable counts the page cache that the kernel would give up; sysconf does not.
  std::ifstream meminfo("/proc/meminfo");
  std::string key;
  std::size_t kib = 0;
  for (std::string line; meminfo >> key >> kib && std::getline(meminfo, line);) {
    if (key == "MemAvailable:") return kib * 1024;
  }
  return static_cast<std::size_t>(sysconf(_SC_AVPHYS_PAGES)) * static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

}  // namespace onerec::cpu
