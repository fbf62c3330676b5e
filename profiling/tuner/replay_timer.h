// The time of kernels inside a CUDA graph.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <memory>
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

  // One more contestant: issue(i) issues the i-th of `calls`, all of which one graph holds.
  template <class Issue>
  void add(int calls, const Issue& issue) {
    stream_.begin_recording();
    for (int i = 0; i < calls; ++i) issue(i);
    contestants_.push_back({calls, stream_.end_recording(), {}});
  }

  // Microseconds of one call of each, in the order in which they were added, who are then gone: medians of replays.
  // They take turns, so that all meet the chip as hot, and its clock as low, as the others do.
  std::vector<double> microseconds() {
    for (int round = -1; round < kReplays; ++round) {
      for (Contestant& contestant : contestants_) {
        const float milliseconds = replay(*contestant.recording);
        if (round >= 0) contestant.times.push_back(milliseconds);
      }
    }
    std::vector<double> out;
    for (Contestant& contestant : contestants_) {
      std::sort(contestant.times.begin(), contestant.times.end());
      out.push_back(1e3 * static_cast<double>(contestant.times[kReplays / 2]) / contestant.calls);
    }
    contestants_.clear();
    return out;
  }

 private:
  static constexpr int kReplays = 7;

  struct Contestant {
    int calls;
    std::unique_ptr<Recording> recording;
    std::vector<float> times;  // milliseconds
  };

  float replay(Recording& recording) {
    check(cudaEventRecord(start_, stream_.handle()), "time a replay");
    recording.replay(stream_);
    check(cudaEventRecord(stop_, stream_.handle()), "time a replay");
    check(cudaEventSynchronize(stop_), "time a replay");
    float milliseconds = 0.0f;
    check(cudaEventElapsedTime(&milliseconds, start_, stop_), "time a replay");
    return milliseconds;
  }

  CudaStream& stream_;
  std::vector<Contestant> contestants_;
  cudaEvent_t start_ = nullptr;
  cudaEvent_t stop_ = nullptr;
};

}  // namespace onerec::cuda
