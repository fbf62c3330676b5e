// The time of a kernel inside a CUDA graph.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <vector>

#include "backends/cuda/cuda_device.h"
#include "backends/cuda/cuda_error.h"

namespace onerec::cuda {

class ReplayTimer {
 public:
  explicit ReplayTimer(CudaStream& stream) : stream_(stream) {
    check(cudaEventCreate(&start_), "make an event");
    check(cudaEventCreate(&stop_), "make an event");
  }
  ~ReplayTimer() {
    cudaEventDestroy(start_);
    cudaEventDestroy(stop_);
  }
  ReplayTimer(const ReplayTimer&) = delete;
  ReplayTimer& operator=(const ReplayTimer&) = delete;

  // Of one call: issue(i) issues the i-th of `calls`, all of which one graph holds. The median of some replays.
  template <class Issue>
  double microseconds(int calls, const Issue& issue) {
    stream_.begin_recording();
    for (int i = 0; i < calls; ++i) issue(i);
    const auto recording = stream_.end_recording();
    recording->replay(stream_);
    std::vector<float> times;
    for (int i = 0; i < kReplays; ++i) {
      check(cudaEventRecord(start_, stream_.handle()), "time a replay");
      recording->replay(stream_);
      check(cudaEventRecord(stop_, stream_.handle()), "time a replay");
      check(cudaEventSynchronize(stop_), "time a replay");
      float milliseconds = 0.0f;
      check(cudaEventElapsedTime(&milliseconds, start_, stop_), "time a replay");
      times.push_back(milliseconds);
    }
    std::sort(times.begin(), times.end());
    return 1e3 * static_cast<double>(times[kReplays / 2]) / calls;
  }

 private:
  static constexpr int kReplays = 7;

  CudaStream& stream_;
  cudaEvent_t start_ = nullptr;
  cudaEvent_t stop_ = nullptr;
};

}  // namespace onerec::cuda
