// What oracles share: how far an op's result may be from the exact one.
#pragma once

#include <gtest/gtest.h>

#include <cmath>

#include "support/tensors.h"
#include "support/tolerance.h"

namespace onerec::test {

// Half a unit in the last place of a value of `dtype` near `value`: the error of one rounding.
inline double rounding_error(DType dtype, double value) {
  const double magnitude = std::abs(value);
  switch (dtype) {
    case DType::kF32:
      return std::ldexp(magnitude, -24);
    case DType::kBF16:
      return std::ldexp(magnitude, -8);
    default:  // E4M3: half a step of 2^-3 of its power of two, half of 2^-9 below 2^-6
      return std::max(std::ldexp(magnitude, -4), std::ldexp(1.0, -10));
  }
}

// |got - want| is at most one rounding to `dtype` of `want` plus `slack`, the error of the FP32 arithmetic before it.
inline void expect_close(DType dtype, double got, double want, double slack, const char* what, std::int64_t r,
                         std::int64_t c) {
  const double bound = rounding_error(dtype, std::abs(want) + slack) * 1.0001 + slack;
  ASSERT_LE(std::abs(got - want), bound) << what << " at (" << r << ", " << c << "): got " << got << ", want " << want;
}

}  // namespace onerec::test
