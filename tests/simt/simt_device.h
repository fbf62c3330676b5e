// The host as the CUDA backend's device: memory is host memory, kernels run when issued, a recording is a list of
// calls.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "ops/backend.h"
#include "ops/device.h"

namespace onerec::simt {

class SimtStream final : public Stream {
 public:
  void synchronize() override {}
  void copy_to_device(void* device, const void* host, std::size_t bytes) override;
  void copy_to_host(void* host, const void* device, std::size_t bytes) override;
  void fill(void* device, int value, std::size_t bytes) override;
  void begin_recording() override;
  std::unique_ptr<Recording> end_recording() override;

  // Runs `work` now, or keeps it for replays while recording.
  void submit(std::function<void()> work);

 private:
  bool recording_ = false;
  std::vector<std::function<void()>> recorded_;
};

class SimtDevice final : public Device {
 public:
  std::string name() const override { return "emulated GPU"; }
  std::unique_ptr<Buffer> allocate(std::size_t bytes) override;
  std::unique_ptr<Buffer> allocate_pinned(std::size_t bytes) override { return allocate(bytes); }
  std::unique_ptr<Stream> make_stream() override { return std::make_unique<SimtStream>(); }
  std::size_t available_memory() const override { return std::size_t{1} << 32; }
};

inline void submit(Stream& stream, std::function<void()> work) {
  static_cast<SimtStream&>(stream).submit(std::move(work));
}

}  // namespace onerec::simt

namespace onerec::test {

// The CUDA backend on a SimtDevice, without tensor cores.
std::unique_ptr<Backend> make_simt_backend();

}  // namespace onerec::test
