// How much the results of a device may differ from exact ones, where docs/numerics.md leaves the order of a sum or the
// precision of an accumulator open. The CPU gets no more than its own arithmetic needs.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string_view>

#include "core/bfloat16.h"
#include "core/build_info.h"
#include "core/dtype.h"
#include "core/float8.h"
#include "support/device.h"

namespace onerec::test {

// Whether a row of a matrix product has the same bits wherever it is in whichever batch. On the CPU as its library has
// it (backends/cpu/gemm.h); the GPU chooses its kernels by the number of rows.
inline bool rows_are_independent() {
  switch (test_device()) {
    case TestDevice::kCpu:
      return std::string_view(build_info::kGemmLibrary).starts_with("oneDNN");
    case TestDevice::kSimt:
      return true;
    default:
      return false;
  }
}

// The error of a sum of products of values of `dtype` whose magnitudes add up to `magnitude`: far above what FP32 sums
// in any usual order lose, far below one wrong term. Tensor cores keep about 13 bits of the sums of FP8 products.
inline double dot_slack(DType dtype, double magnitude) {
  int bits = 21;
  if (test_device() == TestDevice::kCuda && dtype == DType::kE4M3) bits = 12;
  if (test_device() == TestDevice::kCuda && dtype == DType::kBF16) bits = 18;
  return std::ldexp(magnitude, -bits) + 1e-30;
}

// Whether `code` is E4M3 of `value`, which may itself be off by a sum taken in another order.
inline bool is_code_of(std::uint8_t code, float value) {
  if (code == to_e4m3(value)) return true;
  if (test_device() == TestDevice::kCpu) return false;
  constexpr float kOff = 1e-5f;
  return code == to_e4m3(value * (1.0f + kOff)) || code == to_e4m3(value * (1.0f - kOff));
}

// Whether `rounded` is `value` as BF16, with the same doubt.
inline bool is_bfloat16_of(float rounded, float value) {
  if (rounded == to_float(to_bfloat16(value))) return true;
  if (test_device() == TestDevice::kCpu) return false;
  constexpr float kOff = 1e-6f;
  return rounded == to_float(to_bfloat16(value * (1.0f + kOff))) ||
         rounded == to_float(to_bfloat16(value * (1.0f - kOff)));
}

// The same of a scale.
inline bool is_scale(float scale, float want) {
  return scale == want || (test_device() != TestDevice::kCpu && std::abs(scale - want) <= 1e-6f * want);
}

// Whether `score`, of the same codes in another batch, is `want`: to the bit where rows are independent; elsewhere the
// roundings of all layers lie between them.
inline bool is_score(float score, float want) {
  if (rows_are_independent()) return score == want;
  return std::abs(score - want) <= 0.02f * (1.0f + std::abs(want));
}

}  // namespace onerec::test
