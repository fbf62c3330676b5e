// Measured winners of the matrix product, ahead of the model of gemm_select.cpp. A row says: for weights
// [outputs, inputs] and min_rows to max_rows rows, `config` (an index of kGemmConfigs, or -1 for the plain kernel) took
// the least time, by itself or, where IN_GENERATIONS of tune_gemms.py says so, in a generation. Rows are searched in
// order.
#pragma once

#include <array>
#include <cstdint>

#include "backends/cuda/gemm/gemm_configs.h"

namespace onerec::cuda {

struct MeasuredGemm {
  GemmTypes types;
  std::int64_t outputs;
  std::int64_t inputs;
  std::int64_t min_rows;
  std::int64_t max_rows;
  int config;
};

// Written by profiling/tune_gemms.py from measurements on one NVIDIA H200.
// clang-format off
inline constexpr std::array<MeasuredGemm, 63> kMeasuredGemms{{
    {GemmTypes::kFp8ToBf16, 640, 640, 2, 16, 25},
    {GemmTypes::kFp8ToBf16, 640, 640, 4097, 8192, 15},
    {GemmTypes::kFp8ToBf16, 1920, 640, 2, 16, 24},
    {GemmTypes::kFp8ToBf16, 1920, 640, 1025, 2048, 15},
    {GemmTypes::kFp8ToBf16, 640, 2560, 5, 256, 26},
    {GemmTypes::kFp8ToBf16, 640, 2560, 513, 1024, 24},
    {GemmTypes::kFp8ToBf16, 640, 2560, 4097, 8192, 16},
    {GemmTypes::kBf16ToBf16, 640, 640, 5, 32, 4},
    {GemmTypes::kBf16ToBf16, 640, 640, 1025, 4096, 6},
    {GemmTypes::kBf16ToBf16, 640, 640, 4097, 8192, 7},
    {GemmTypes::kBf16ToBf16, 1920, 640, 5, 8, 4},
    {GemmTypes::kBf16ToBf16, 1920, 640, 513, 1024, 6},
    {GemmTypes::kBf16ToBf16, 1920, 640, 1025, 8192, 7},
    {GemmTypes::kBf16ToBf16, 5120, 640, 3, 4, 5},
    {GemmTypes::kBf16ToBf16, 5120, 640, 5, 8, 6},
    {GemmTypes::kBf16ToBf16, 5120, 640, 129, 256, 5},
    {GemmTypes::kBf16ToBf16, 5120, 640, 513, 1024, 7},
    {GemmTypes::kBf16ToBf16, 640, 2560, 9, 16, 4},
    {GemmTypes::kBf16ToBf16, 640, 2560, 4097, 8192, 7},
    {GemmTypes::kFp8ToBf16, 1792, 1792, 3, 32, 24},
    {GemmTypes::kFp8ToBf16, 1792, 1792, 1025, 2048, 16},
    {GemmTypes::kFp8ToBf16, 5376, 1792, 2, 2, -1},
    {GemmTypes::kFp8ToBf16, 5376, 1792, 3, 64, 17},
    {GemmTypes::kFp8ToBf16, 5376, 1792, 65, 128, 24},
    {GemmTypes::kFp8ToBf16, 5376, 1792, 4097, 16384, 3},
    {GemmTypes::kFp8ToBf16, 14336, 1792, 1, 1, -1},
    {GemmTypes::kFp8ToBf16, 14336, 1792, 2, 64, 2},
    {GemmTypes::kFp8ToBf16, 14336, 1792, 129, 256, 15},
    {GemmTypes::kFp8ToBf16, 14336, 1792, 8193, 16384, 3},
    {GemmTypes::kFp8ToBf16, 1792, 7168, 33, 64, 0},
    {GemmTypes::kFp8ToBf16, 1792, 7168, 65, 256, 26},
    {GemmTypes::kFp8ToBf16, 1792, 7168, 257, 512, 22},
    {GemmTypes::kFp8ToBf16, 1792, 7168, 4097, 16384, 3},
    {GemmTypes::kBf16ToBf16, 1792, 1792, 5, 16, 5},
    {GemmTypes::kBf16ToBf16, 1792, 1792, 8193, 16384, 7},
    {GemmTypes::kBf16ToBf16, 5376, 1792, 3, 32, 6},
    {GemmTypes::kBf16ToBf16, 5376, 1792, 513, 4096, 7},
    {GemmTypes::kBf16ToBf16, 14336, 1792, 3, 32, 6},
    {GemmTypes::kBf16ToBf16, 14336, 1792, 2049, 4096, 7},
    {GemmTypes::kBf16ToBf16, 1792, 7168, 3, 16, 5},
    {GemmTypes::kBf16ToBf16, 1792, 7168, 8193, 16384, 7},
    {GemmTypes::kFp8ToBf16, 4224, 1408, 2, 2, -1},
    {GemmTypes::kFp8ToBf16, 4224, 1408, 3, 64, 24},
    {GemmTypes::kFp8ToBf16, 11264, 1408, 1, 1, -1},
    {GemmTypes::kFp8ToBf16, 11264, 1408, 33, 64, 1},
    {GemmTypes::kFp8ToBf16, 11264, 1408, 8193, 16384, 3},
    {GemmTypes::kFp8ToBf16, 1408, 5632, 3, 4, -1},
    {GemmTypes::kFp8ToBf16, 1408, 5632, 5, 16, 1},
    {GemmTypes::kFp8ToBf16, 1408, 5632, 65, 256, 26},
    {GemmTypes::kFp8ToBf16, 1408, 5632, 257, 512, 18},
    {GemmTypes::kFp8ToBf16, 2816, 1408, 3, 64, 24},
    {GemmTypes::kBf16ToBf16, 1408, 1408, 5, 8, 5},
    {GemmTypes::kBf16ToBf16, 1408, 1408, 2049, 8192, 7},
    {GemmTypes::kBf16ToBf16, 4224, 1408, 3, 4, 6},
    {GemmTypes::kBf16ToBf16, 4224, 1408, 5, 32, 5},
    {GemmTypes::kBf16ToBf16, 11264, 1408, 33, 64, 4},
    {GemmTypes::kBf16ToBf16, 11264, 1408, 65, 128, 5},
    {GemmTypes::kBf16ToBf16, 11264, 1408, 257, 1024, 7},
    {GemmTypes::kBf16ToBf16, 1408, 5632, 5, 16, 5},
    {GemmTypes::kBf16ToBf16, 2816, 1408, 5, 32, 5},
    {GemmTypes::kBf16ToBf16, 2816, 1408, 1025, 4096, 7},
    {GemmTypes::kBf16ToF32, 64, 1408, 33, 128, 10},
    {GemmTypes::kBf16ToF32, 64, 1408, 1025, 2048, 11},
}};
// clang-format on

}  // namespace onerec::cuda
