// Measured winners of the matrix product, ahead of the model of gemm_select.cpp. A row says: for weights
// [outputs, inputs] and min_rows to max_rows rows, `config` (an index of kGemmConfigs, or -1 for the plain kernel) took
// the least time. Rows are searched in order.
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

// Written by profiling/tune_gemms.py from measurements on one NVIDIA H100 80GB HBM3.
inline constexpr std::array<MeasuredGemm, 97> kMeasuredGemms{{
    {GemmTypes::kFp8ToBf16, 640, 640, 5, 8, 1},
    {GemmTypes::kFp8ToBf16, 640, 640, 9, 16, 0},
    {GemmTypes::kFp8ToBf16, 640, 640, 65, 128, 1},
    {GemmTypes::kFp8ToBf16, 640, 640, 129, 256, 2},
    {GemmTypes::kFp8ToBf16, 640, 640, 1025, 2048, 3},
    {GemmTypes::kFp8ToBf16, 640, 640, 4097, 8192, 5},
    {GemmTypes::kFp8ToBf16, 1920, 640, 5, 32, 1},
    {GemmTypes::kFp8ToBf16, 1920, 640, 513, 1024, 3},
    {GemmTypes::kFp8ToBf16, 1920, 640, 4097, 8192, 5},
    {GemmTypes::kFp8ToBf16, 5120, 640, 2, 2, 2},
    {GemmTypes::kFp8ToBf16, 5120, 640, 129, 256, 3},
    {GemmTypes::kFp8ToBf16, 5120, 640, 513, 16384, 5},
    {GemmTypes::kFp8ToBf16, 640, 2560, 2, 16, 1},
    {GemmTypes::kFp8ToBf16, 640, 2560, 1025, 2048, 3},
    {GemmTypes::kFp8ToBf16, 640, 2560, 4097, 16384, 5},
    {GemmTypes::kBf16ToBf16, 640, 640, 5, 32, 8},
    {GemmTypes::kBf16ToBf16, 640, 640, 65, 128, 9},
    {GemmTypes::kBf16ToBf16, 640, 640, 1025, 4096, 11},
    {GemmTypes::kBf16ToBf16, 640, 640, 4097, 8192, 12},
    {GemmTypes::kBf16ToBf16, 1920, 640, 3, 16, 9},
    {GemmTypes::kBf16ToBf16, 1920, 640, 65, 128, 9},
    {GemmTypes::kBf16ToBf16, 1920, 640, 4097, 16384, 12},
    {GemmTypes::kBf16ToBf16, 5120, 640, 3, 8, 11},
    {GemmTypes::kBf16ToBf16, 5120, 640, 33, 64, 8},
    {GemmTypes::kBf16ToBf16, 5120, 640, 129, 256, 10},
    {GemmTypes::kBf16ToBf16, 5120, 640, 513, 1024, 12},
    {GemmTypes::kBf16ToBf16, 5120, 640, 2049, 16384, 12},
    {GemmTypes::kBf16ToBf16, 640, 2560, 5, 32, 9},
    {GemmTypes::kBf16ToBf16, 640, 2560, 8193, 16384, 12},
    {GemmTypes::kBf16ToF32, 8192, 640, 2, 8, 16},
    {GemmTypes::kBf16ToF32, 8192, 640, 513, 16384, 18},
    {GemmTypes::kFp8ToBf16, 1792, 1792, 3, 4, 1},
    {GemmTypes::kFp8ToBf16, 1792, 1792, 65, 128, 1},
    {GemmTypes::kFp8ToBf16, 1792, 1792, 513, 1024, 5},
    {GemmTypes::kFp8ToBf16, 1792, 1792, 4097, 16384, 5},
    {GemmTypes::kFp8ToBf16, 5376, 1792, 1, 16, 3},
    {GemmTypes::kFp8ToBf16, 5376, 1792, 129, 256, 5},
    {GemmTypes::kFp8ToBf16, 5376, 1792, 513, 4096, 5},
    {GemmTypes::kFp8ToBf16, 5376, 1792, 4097, 8192, 4},
    {GemmTypes::kFp8ToBf16, 14336, 1792, 1, 4, 3},
    {GemmTypes::kFp8ToBf16, 14336, 1792, 129, 4096, 5},
    {GemmTypes::kFp8ToBf16, 14336, 1792, 4097, 8192, 4},
    {GemmTypes::kFp8ToBf16, 1792, 7168, 3, 16, 2},
    {GemmTypes::kFp8ToBf16, 1792, 7168, 65, 128, 1},
    {GemmTypes::kFp8ToBf16, 1792, 7168, 129, 256, 2},
    {GemmTypes::kFp8ToBf16, 1792, 7168, 513, 1024, 5},
    {GemmTypes::kFp8ToBf16, 1792, 7168, 4097, 8192, 4},
    {GemmTypes::kBf16ToBf16, 1792, 1792, 3, 16, 10},
    {GemmTypes::kBf16ToBf16, 1792, 1792, 65, 128, 9},
    {GemmTypes::kBf16ToBf16, 1792, 1792, 4097, 8192, 12},
    {GemmTypes::kBf16ToBf16, 5376, 1792, 3, 16, 11},
    {GemmTypes::kBf16ToBf16, 5376, 1792, 4097, 16384, 12},
    {GemmTypes::kBf16ToBf16, 14336, 1792, 3, 4, 11},
    {GemmTypes::kBf16ToBf16, 14336, 1792, 65, 128, 11},
    {GemmTypes::kBf16ToBf16, 14336, 1792, 513, 1024, 12},
    {GemmTypes::kBf16ToBf16, 1792, 7168, 3, 32, 10},
    {GemmTypes::kBf16ToBf16, 1792, 7168, 4097, 8192, 12},
    {GemmTypes::kBf16ToF32, 8192, 1792, 2, 4, 16},
    {GemmTypes::kBf16ToF32, 8192, 1792, 257, 512, 18},
    {GemmTypes::kBf16ToF32, 8192, 1792, 4097, 16384, 18},
    {GemmTypes::kFp8ToBf16, 1408, 1408, 2, 32, 1},
    {GemmTypes::kFp8ToBf16, 1408, 1408, 513, 1024, 5},
    {GemmTypes::kFp8ToBf16, 1408, 1408, 2049, 16384, 5},
    {GemmTypes::kFp8ToBf16, 4224, 1408, 2, 2, 2},
    {GemmTypes::kFp8ToBf16, 4224, 1408, 65, 128, 2},
    {GemmTypes::kFp8ToBf16, 4224, 1408, 4097, 16384, 5},
    {GemmTypes::kFp8ToBf16, 11264, 1408, 1, 4, 3},
    {GemmTypes::kFp8ToBf16, 11264, 1408, 65, 128, 3},
    {GemmTypes::kFp8ToBf16, 11264, 1408, 257, 16384, 5},
    {GemmTypes::kFp8ToBf16, 1408, 5632, 2, 16, 2},
    {GemmTypes::kFp8ToBf16, 1408, 5632, 17, 32, 1},
    {GemmTypes::kFp8ToBf16, 1408, 5632, 513, 1024, 5},
    {GemmTypes::kFp8ToBf16, 1408, 5632, 4097, 8192, 6},
    {GemmTypes::kFp8ToBf16, 1408, 5632, 8193, 16384, 5},
    {GemmTypes::kFp8ToBf16, 2816, 1408, 2, 32, 2},
    {GemmTypes::kFp8ToBf16, 2816, 1408, 257, 512, 3},
    {GemmTypes::kFp8ToBf16, 2816, 1408, 1025, 8192, 5},
    {GemmTypes::kFp8ToBf16, 2816, 1408, 8193, 16384, 4},
    {GemmTypes::kBf16ToBf16, 1408, 1408, 5, 8, 10},
    {GemmTypes::kBf16ToBf16, 1408, 1408, 9, 32, 9},
    {GemmTypes::kBf16ToBf16, 1408, 1408, 4097, 8192, 13},
    {GemmTypes::kBf16ToBf16, 1408, 1408, 8193, 16384, 12},
    {GemmTypes::kBf16ToBf16, 4224, 1408, 3, 8, 10},
    {GemmTypes::kBf16ToBf16, 4224, 1408, 65, 128, 10},
    {GemmTypes::kBf16ToBf16, 4224, 1408, 129, 256, 11},
    {GemmTypes::kBf16ToBf16, 4224, 1408, 1025, 16384, 12},
    {GemmTypes::kBf16ToBf16, 11264, 1408, 3, 4, 11},
    {GemmTypes::kBf16ToBf16, 11264, 1408, 33, 64, 9},
    {GemmTypes::kBf16ToBf16, 11264, 1408, 65, 128, 10},
    {GemmTypes::kBf16ToBf16, 11264, 1408, 257, 512, 12},
    {GemmTypes::kBf16ToBf16, 11264, 1408, 2049, 8192, 12},
    {GemmTypes::kBf16ToBf16, 1408, 5632, 5, 16, 10},
    {GemmTypes::kBf16ToBf16, 2816, 1408, 5, 32, 10},
    {GemmTypes::kBf16ToBf16, 2816, 1408, 4097, 16384, 12},
    {GemmTypes::kBf16ToF32, 8192, 1408, 2, 8, 16},
    {GemmTypes::kBf16ToF32, 8192, 1408, 257, 16384, 18},
    {GemmTypes::kBf16ToF32, 64, 1408, 33, 256, 15},
}};

}  // namespace onerec::cuda
