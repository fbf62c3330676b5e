// One NVIDIA GPU: memory, streams, and sequences of work recorded as CUDA graphs.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string>
#include <utility>

#include "ops/device.h"

namespace onerec::cuda {

class CudaStream final : public Stream {
 public:
  CudaStream();
  ~CudaStream() override;
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  cudaStream_t handle() const { return stream_; }

  void synchronize() override;
  void copy_to_device(void* device, const void* host, std::size_t bytes) override;
  void copy_to_host(void* host, const void* device, std::size_t bytes) override;
  void fill(void* device, int value, std::size_t bytes) override;
  // What is issued from here on becomes one CUDA graph. Copies need pinned host memory.
  void begin_recording() override;
  std::unique_ptr<Recording> end_recording() override;
  std::uintptr_t native_handle() const override { return reinterpret_cast<std::uintptr_t>(stream_); }
  // NVTX ranges, of work that is done now; a graph's replay shows its kernels alone.
  void begin_range(const char* name) override;
  void end_range() override;
  void overlap_work(bool allowed) override { overlapped_ = allowed; }
  void expect_long_work(bool expected) override { long_ = expected; }
  Stream& fork() override;
  void join() override;
  // Whether the next kernel may start before the one ahead of it has ended; to be asked once for every launch. The
  // first one behind a fork or a join may not: it depends on more than the kernel ahead of it in its stream.
  bool overlap_next() { return !std::exchange(behind_event_, false) && overlapped_ && !long_; }

 private:
  struct Branch;

  // No streams are made while recording.
  void prepare_branch();

  cudaStream_t stream_ = nullptr;
  bool recording_ = false;
  bool overlapped_ = true;
  bool long_ = false;
  bool behind_event_ = false;
  bool forked_ = false;
  std::unique_ptr<Branch> branch_;
};

class CudaDevice final : public Device {
 public:
  // Makes `ordinal` the calling thread's device. Throws DeviceError.
  explicit CudaDevice(int ordinal);

  std::string name() const override { return name_; }
  std::unique_ptr<Buffer> allocate(std::size_t bytes) override;
  std::unique_ptr<Buffer> allocate_pinned(std::size_t bytes) override;
  std::unique_ptr<Stream> make_stream() override;
  std::size_t available_memory() const override;

  int multiprocessors() const { return multiprocessors_; }

 private:
  int ordinal_;
  std::string name_;
  int multiprocessors_ = 0;
};

inline cudaStream_t handle(Stream& stream) { return static_cast<CudaStream&>(stream).handle(); }
// See CudaStream::overlap_next().
inline bool overlapped(Stream& stream) { return static_cast<CudaStream&>(stream).overlap_next(); }

}  // namespace onerec::cuda
