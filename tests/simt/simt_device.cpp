#include "simt_device.h"

#include <cstdlib>
#include <cstring>

#include "backends/cuda/cuda_backend.h"
#include "core/arena.h"
#include "core/error.h"

namespace onerec::simt {
namespace {

class SimtBuffer final : public Buffer {
 public:
  explicit SimtBuffer(std::size_t bytes)
      : bytes_(bytes), data_(std::aligned_alloc(kAlignment, align_up(bytes == 0 ? 1 : bytes)), &std::free) {
    if (data_ == nullptr) throw PlanMemoryError(concat("[memory] could not allocate ", bytes, " bytes."));
  }
  void* data() const override { return data_.get(); }
  std::size_t bytes() const override { return bytes_; }

 private:
  std::size_t bytes_;
  std::unique_ptr<void, decltype(&std::free)> data_;
};

class SimtRecording final : public Recording {
 public:
  explicit SimtRecording(std::vector<std::function<void()>> calls) : calls_(std::move(calls)) {}
  void replay(Stream&) override {
    for (const auto& call : calls_) call();
  }

 private:
  std::vector<std::function<void()>> calls_;
};

}  // namespace

void SimtStream::submit(std::function<void()> work) {
  if (recording_) {
    recorded_.push_back(std::move(work));
  } else {
    work();
  }
}

void SimtStream::copy_to_device(void* device, const void* host, std::size_t bytes) {
  if (bytes > 0) submit([=] { std::memcpy(device, host, bytes); });
}

void SimtStream::copy_to_host(void* host, const void* device, std::size_t bytes) {
  copy_to_device(host, device, bytes);
}

void SimtStream::fill(void* device, int value, std::size_t bytes) {
  if (bytes > 0) submit([=] { std::memset(device, value, bytes); });
}

void SimtStream::begin_recording() {
  ensure(!recording_, "a stream records one sequence at a time");
  recording_ = true;
}

std::unique_ptr<Recording> SimtStream::end_recording() {
  ensure(recording_, "end_recording() without begin_recording()");
  recording_ = false;
  return std::make_unique<SimtRecording>(std::exchange(recorded_, {}));
}

std::unique_ptr<Buffer> SimtDevice::allocate(std::size_t bytes) { return std::make_unique<SimtBuffer>(bytes); }

}  // namespace onerec::simt

namespace onerec::test {

std::unique_ptr<Backend> make_simt_backend() {
  return std::make_unique<cuda::CudaBackend>(
      std::make_unique<simt::SimtDevice>(),
      cuda::DeviceLimits{.multiprocessors = 3, .tensor_cores = false, .clusters = false});
}

}  // namespace onerec::test
