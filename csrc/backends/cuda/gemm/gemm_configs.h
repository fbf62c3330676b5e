// The tensor-core kernels of the dense matrix product that are built. Plain C++.
#pragma once

#include <cstdint>

namespace onerec::cuda {

enum class GemmTypes : std::uint8_t {
  kFp8ToBf16,  // E4M3 codes with a scale per row and per output
  kBf16ToBf16,
  kBf16ToF32,
};

enum class GemmSchedule : std::uint8_t {
  kPingpong,     // two groups of warps work on a tile each: one multiplies while the other stores
  kCooperative,  // two groups of warps share a tile: larger tiles, less traffic
  kDirect,       // the same, but a tile is finished while the next one is multiplied: direct_kernel.cuh, FP8 alone
  kSplit,        // a block has one tile or, with others that add up their sums, a part of its K: split_kernel.cuh, FP8
};

// Not CUTLASS's.
constexpr bool is_ours(GemmSchedule schedule) {
  return schedule == GemmSchedule::kDirect || schedule == GemmSchedule::kSplit;
}

struct GemmConfig {
  GemmTypes types;
  int tile_rows;
  int tile_outputs;
  int tile_bytes;  // of K, per step
  int cluster;     // row tiles whose thread blocks share what they load of W
  GemmSchedule schedule;
  int depth_parts = 1;  // of K: thread blocks that share a tile
};

// A configuration's index is its name towards dense_gemm(). dense_instances_<i>.cu build them, those of kDirect
// direct_fp8.cu, those of kSplit split_fp8.cu.
inline constexpr GemmConfig kGemmConfigs[] = {
    {GemmTypes::kFp8ToBf16, 64, 32, 256, 1, GemmSchedule::kPingpong},
    {GemmTypes::kFp8ToBf16, 64, 64, 128, 1, GemmSchedule::kPingpong},
    {GemmTypes::kFp8ToBf16, 64, 128, 128, 1, GemmSchedule::kPingpong},
    {GemmTypes::kFp8ToBf16, 128, 128, 128, 2, GemmSchedule::kPingpong},
    {GemmTypes::kBf16ToBf16, 64, 32, 256, 1, GemmSchedule::kPingpong},
    {GemmTypes::kBf16ToBf16, 64, 64, 128, 1, GemmSchedule::kPingpong},
    {GemmTypes::kBf16ToBf16, 64, 128, 128, 1, GemmSchedule::kPingpong},
    {GemmTypes::kBf16ToBf16, 128, 128, 128, 2, GemmSchedule::kPingpong},
    {GemmTypes::kBf16ToBf16, 128, 192, 128, 2, GemmSchedule::kCooperative},
    {GemmTypes::kBf16ToBf16, 128, 256, 128, 2, GemmSchedule::kCooperative},
    {GemmTypes::kBf16ToF32, 64, 16, 256, 1, GemmSchedule::kPingpong},
    {GemmTypes::kBf16ToF32, 64, 64, 128, 1, GemmSchedule::kPingpong},
    {GemmTypes::kBf16ToF32, 128, 128, 128, 2, GemmSchedule::kPingpong},
    {GemmTypes::kFp8ToBf16, 128, 256, 128, 2, GemmSchedule::kDirect},
    {GemmTypes::kFp8ToBf16, 128, 192, 128, 2, GemmSchedule::kDirect},
    {GemmTypes::kFp8ToBf16, 128, 128, 128, 2, GemmSchedule::kDirect},
    {GemmTypes::kFp8ToBf16, 128, 128, 128, 4, GemmSchedule::kDirect},
    {GemmTypes::kFp8ToBf16, 128, 96, 128, 1, GemmSchedule::kSplit, 2},
    {GemmTypes::kFp8ToBf16, 128, 96, 128, 2, GemmSchedule::kSplit, 2},
    {GemmTypes::kFp8ToBf16, 128, 112, 128, 1, GemmSchedule::kSplit, 2},
    {GemmTypes::kFp8ToBf16, 128, 112, 128, 2, GemmSchedule::kSplit, 2},
    {GemmTypes::kFp8ToBf16, 128, 128, 128, 1, GemmSchedule::kSplit, 2},
    {GemmTypes::kFp8ToBf16, 128, 128, 128, 2, GemmSchedule::kSplit, 2},
    {GemmTypes::kFp8ToBf16, 128, 128, 128, 1, GemmSchedule::kSplit, 4},
    {GemmTypes::kFp8ToBf16, 128, 64, 128, 1, GemmSchedule::kSplit, 1},
    {GemmTypes::kFp8ToBf16, 128, 32, 128, 1, GemmSchedule::kSplit, 1},
    {GemmTypes::kFp8ToBf16, 128, 64, 128, 1, GemmSchedule::kSplit, 2},
};
inline constexpr int kGemmConfigCount = sizeof(kGemmConfigs) / sizeof(kGemmConfigs[0]);

// Products with SwiGLU; tile_outputs counts gates and ups. direct_swiglu_fp8.cu and direct_swiglu_codes_fp8.cu build
// them. An index is the name towards swiglu_gemm().
inline constexpr GemmConfig kSwigluConfigs[] = {
    {GemmTypes::kFp8ToBf16, 128, 256, 128, 2, GemmSchedule::kDirect},
    {GemmTypes::kFp8ToBf16, 128, 128, 128, 2, GemmSchedule::kDirect},
    {GemmTypes::kFp8ToBf16, 128, 224, 128, 2, GemmSchedule::kDirect},
    {GemmTypes::kFp8ToBf16, 128, 160, 128, 2, GemmSchedule::kDirect},
};
inline constexpr int kSwigluConfigCount = sizeof(kSwigluConfigs) / sizeof(kSwigluConfigs[0]);

// The direct kernel makes whole groups of 32 columns of the result.
inline constexpr std::int64_t kDirectMultiple = 32;
constexpr bool takes_outputs(const GemmConfig& config, std::int64_t outputs) {
  return config.schedule != GemmSchedule::kDirect || outputs % kDirectMultiple == 0;
}

constexpr int input_bytes(GemmTypes types) { return types == GemmTypes::kFp8ToBf16 ? 1 : 2; }
constexpr int output_bytes(GemmTypes types) { return types == GemmTypes::kBf16ToF32 ? 4 : 2; }

}  // namespace onerec::cuda
