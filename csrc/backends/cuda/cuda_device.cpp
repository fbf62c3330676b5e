#include "backends/cuda/cuda_device.h"

#include <nvtx3/nvToolsExt.h>

#include "backends/cuda/cuda_error.h"

namespace onerec::cuda {
namespace {

// Destructors must not throw, and a fault is reported by the next call that can.
void ignore(cudaError_t) {}

class DeviceBuffer final : public Buffer {
 public:
  explicit DeviceBuffer(std::size_t bytes) : bytes_(bytes) {
    check(cudaMalloc(&data_, bytes == 0 ? 1 : bytes), "allocate device memory");
  }
  ~DeviceBuffer() override { ignore(cudaFree(data_)); }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  void* data() const override { return data_; }
  std::size_t bytes() const override { return bytes_; }

 private:
  std::size_t bytes_;
  void* data_ = nullptr;
};

class PinnedBuffer final : public Buffer {
 public:
  explicit PinnedBuffer(std::size_t bytes) : bytes_(bytes) {
    check(cudaMallocHost(&data_, bytes == 0 ? 1 : bytes), "allocate pinned host memory");
  }
  ~PinnedBuffer() override { ignore(cudaFreeHost(data_)); }
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;

  void* data() const override { return data_; }
  std::size_t bytes() const override { return bytes_; }

 private:
  std::size_t bytes_;
  void* data_ = nullptr;
};

class Event {
 public:
  Event() { check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "make an event"); }
  ~Event() { ignore(cudaEventDestroy(event_)); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  // What `later` gets from here on comes after what `earlier` has; recorded, this becomes edges of the graph.
  void order(cudaStream_t earlier, cudaStream_t later) {
    check(cudaEventRecord(event_, earlier), "mark a place in a stream");
    check(cudaStreamWaitEvent(later, event_, 0), "let a stream wait for another");
  }

 private:
  cudaEvent_t event_ = nullptr;
};

class GraphRecording final : public Recording {
 public:
  explicit GraphRecording(cudaGraph_t graph) {
    const cudaError_t status = cudaGraphInstantiate(&executable_, graph, 0);
    ignore(cudaGraphDestroy(graph));
    check(status, "instantiate a CUDA graph");
  }
  ~GraphRecording() override { ignore(cudaGraphExecDestroy(executable_)); }
  GraphRecording(const GraphRecording&) = delete;
  GraphRecording& operator=(const GraphRecording&) = delete;

  void upload(cudaStream_t stream) { check(cudaGraphUpload(executable_, stream), "upload a CUDA graph"); }
  void replay(Stream& stream) override { check(cudaGraphLaunch(executable_, handle(stream)), "launch a CUDA graph"); }

 private:
  cudaGraphExec_t executable_ = nullptr;
};

}  // namespace

struct CudaStream::Branch {
  CudaStream stream;
  Event fork;
  Event join;
};

CudaStream::CudaStream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "make a stream"); }

CudaStream::~CudaStream() { ignore(cudaStreamDestroy(stream_)); }

void CudaStream::synchronize() { check(cudaStreamSynchronize(stream_), "wait for the device"); }

void CudaStream::copy_to_device(void* device, const void* host, std::size_t bytes) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream_), "copy to the device");
}

void CudaStream::copy_to_host(void* host, const void* device, std::size_t bytes) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_), "copy to the host");
}

void CudaStream::fill(void* device, int value, std::size_t bytes) {
  if (bytes == 0) return;
  check(cudaMemsetAsync(device, value, bytes, stream_), "fill device memory");
}

void CudaStream::prepare_branch() {
  if (branch_ == nullptr) branch_ = std::make_unique<Branch>();
}

Stream& CudaStream::fork() {
  join();
  prepare_branch();
  CudaStream& branch = branch_->stream;
  branch.recording_ = recording_;
  branch.overlapped_ = overlapped_;
  branch.long_ = long_;
  branch_->fork.order(stream_, branch.stream_);
  branch.behind_event_ = true;
  forked_ = true;
  return branch;
}

void CudaStream::join() {
  if (!std::exchange(forked_, false)) return;
  branch_->join.order(branch_->stream.stream_, stream_);
  behind_event_ = true;
}

void CudaStream::begin_recording() {
  join();
  prepare_branch();
  recording_ = true;
  check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "begin to record");
}

std::unique_ptr<Recording> CudaStream::end_recording() {
  join();
  recording_ = false;
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(stream_, &graph), "record");
  auto recording = std::make_unique<GraphRecording>(graph);
  recording->upload(stream_);
  return recording;
}

void CudaStream::begin_range(const char* name) {
  if (!recording_) nvtxRangePushA(name);
}

void CudaStream::end_range() {
  if (!recording_) nvtxRangePop();
}

CudaDevice::CudaDevice(int ordinal) : ordinal_(ordinal) {
  check(cudaSetDevice(ordinal_), "choose a device");
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, ordinal_), "ask for the device's properties");
  name_ = properties.name;
  multiprocessors_ = properties.multiProcessorCount;
}

std::unique_ptr<Buffer> CudaDevice::allocate(std::size_t bytes) { return std::make_unique<DeviceBuffer>(bytes); }

std::unique_ptr<Buffer> CudaDevice::allocate_pinned(std::size_t bytes) { return std::make_unique<PinnedBuffer>(bytes); }

std::unique_ptr<Stream> CudaDevice::make_stream() { return std::make_unique<CudaStream>(); }

std::size_t CudaDevice::available_memory() const {
  std::size_t available = 0;
  std::size_t total = 0;
  check(cudaMemGetInfo(&available, &total), "ask for free device memory");
  return available;
}

}  // namespace onerec::cuda
