// What codes per row of an RMSNorm are (ops/rms_norm.h), by definition.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "support/tensors.h"

namespace onerec::test {

inline float largest_magnitude(const TestArray<float>& values) {
  float largest = 0.0f;
  for (const float value : values) largest = std::max(largest, std::abs(value));
  return largest;
}

// A power of two: codes are those of x * gamma / s, the row's scale is s / sqrt(mean(x^2) + eps).
inline double norm_code_power(double mean_square, double gamma_magnitude) {
  int square = 0;
  int gamma = 0;
  // mean_square / 4^(square / 2) is in [0.5, 2), square / 2 rounded down.
  std::frexp(std::max(mean_square, 0x1p-97), &square);
  const bool whole = std::frexp(std::clamp(gamma_magnitude, 0x1p-40, 0x1p40), &gamma) == 0.5;
  return std::ldexp(0.5, std::clamp(square >> 1, -48, 48) + gamma - (whole ? 1 : 0));
}

// Row r of `coded` holds the codes of the norm of row r of x, whose squares do not overflow. The codes are exact: only
// the root in the scale depends on the order of a sum.
inline void check_norm_codes(const TestMatrix& x, const TestArray<float>& gamma, float eps, const TestOperand& coded,
                             std::int64_t r) {
  double squares = 0.0;
  for (std::int64_t c = 0; c < x.cols(); ++c) squares += static_cast<double>(x.get(r, c)) * x.get(r, c);
  const double mean_square = squares / static_cast<double>(x.cols());
  const double power = norm_code_power(mean_square, largest_magnitude(gamma));
  const double scale = power / std::sqrt(mean_square + eps);
  ASSERT_NEAR(coded.scale(r, 0), scale, 2e-6 * scale) << "row " << r;
  const auto inverse = static_cast<float>(1.0 / power);
  const std::vector<unsigned char> codes = coded.codes.row_bytes(r);
  for (std::int64_t c = 0; c < x.cols(); ++c) {
    ASSERT_EQ(codes[static_cast<std::size_t>(c)], to_e4m3(x.get(r, c) * gamma[c] * inverse))
        << "code at (" << r << ", " << c << ")";
  }
}

}  // namespace onerec::test
