// Which matrix product kernel to use for a shape. Plain C++ without CUDA.
#pragma once

#include <cstdint>

#include "backends/cuda/gemm/gemm_configs.h"

namespace onerec::cuda {

struct GemmShape {
  GemmTypes types = GemmTypes::kBf16ToBf16;
  std::int64_t rows = 0;  // capacity
  std::int64_t outputs = 0;
  std::int64_t inputs = 0;
  int multiprocessors = 132;
  bool ours = false;  // not CUTLASS's kernels, which know nothing of pending norms
};

// What select_gemm returns for the plain kernel, which streams W for a few rows.
inline constexpr int kPlainGemm = -1;

// An index of kGemmConfigs, or kPlainGemm: the measured winner if measured_gemms.h has one, else model_gemm().
int select_gemm(const GemmShape& shape);

// The kernel of least gemm_microseconds().
int model_gemm(const GemmShape& shape);

// Of kSwigluConfigs, for a weight of `outputs` gates and ups: the kernel of least time by the same model.
int select_swiglu_gemm(const GemmShape& shape);

// The time that the model expects of a configuration (of the shape's types) or of kPlainGemm.
double gemm_microseconds(const GemmShape& shape, int config);

}  // namespace onerec::cuda
