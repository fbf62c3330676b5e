// The interface between dense_gemm.cpp and the kernels, which are compiled a few per source file.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "backends/cuda/gemm/gemm_configs.h"

namespace onerec::cuda {

struct NormsOfCall;  // direct_instances.h

struct DenseGemmCall {
  const void* x = nullptr;  // [rows, inputs]
  std::int64_t x_stride = 0;
  const float* x_scales = nullptr;  // [rows]; FP8
  const void* weights = nullptr;    // [outputs, inputs]
  const float* weight_scales = nullptr;
  const float* bias = nullptr;  // [outputs] or null
  const void* residual = nullptr;
  std::int64_t residual_stride = 0;
  void* y = nullptr;
  std::int64_t y_stride = 0;
  // Codes of y; SwiGLU. Either of the first two is given.
  void* progress = nullptr;   // room for the words of a DirectProgress: by the rows' largest values
  float static_scale = 0.0f;  // > 0: by this scale, in place of y
  void* codes = nullptr;
  std::int64_t codes_stride = 0;
  float* code_scales = nullptr;
  const NormsOfCall* norms = nullptr;  // of x and y, or null
  int rows = 0;
  int outputs = 0;
  int inputs = 0;
  const std::int32_t* live_rows = nullptr;
  float negative_slope = 1.0f;
  int multiprocessors = 0;
  cudaStream_t stream = nullptr;
  bool overlapped = true;  // may start before the kernel ahead of it has ended
};

// Issues kernel kGemmConfigs[kConfig]. Null, or what went wrong.
template <int kConfig>
const char* run_dense_gemm(const DenseGemmCall& call);

}  // namespace onerec::cuda
