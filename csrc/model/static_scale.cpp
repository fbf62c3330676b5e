#include "model/static_scale.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "core/float8.h"

namespace onerec {
namespace {

// What typical values are to be at least, in units of the scale, so that few codes are subnormal: those of less than
// 1 / 64. An attention's output is the mean of many values, and so smaller than they are.
constexpr double kLeastOfAttention = 2.0;
constexpr double kLeastOfSwiglu = 1.0 / 32.0;
// What rounding adds: to a value by BF16, and to a product of two sums over codes of their input.
constexpr double kRoundedValue = 1.0 + 1.0 / 128;
constexpr double kRoundedProduct = 1.25;
constexpr double kLargestScale = 0x1p40;

double median(std::vector<double>& values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// The smallest power of two by which `bound` is at most 448, if `typical` is at least `least` times as large.
float static_scale(double bound, double typical, double least) {
  if (!(bound > 0.0) || !std::isfinite(bound)) return 0.0f;
  const double scale = std::exp2(std::ceil(std::log2(bound / kE4M3Max)));
  const bool in_range = scale <= kLargestScale && scale >= 1.0 / kLargestScale;
  return in_range && typical >= least * scale ? static_cast<float>(scale) : 0.0f;
}

std::array<float, 256> values_of_codes() {
  std::array<float, 256> values{};
  for (std::size_t code = 0; code < values.size(); ++code) values[code] = from_e4m3(static_cast<std::uint8_t>(code));
  return values;
}

}  // namespace

// A normed row has a mean square of at most 1, so that none of its values is beyond sqrt(width).
float attention_static_scale(const std::vector<float>& gamma) {
  std::vector<double> magnitudes;
  for (const float g : gamma) {
    if (std::isnan(g)) return 0.0f;
    magnitudes.push_back(std::fabs(g));
  }
  if (magnitudes.empty()) return 0.0f;
  const double largest = *std::max_element(magnitudes.begin(), magnitudes.end());
  const auto width = static_cast<double>(gamma.size());
  return static_scale(largest * std::sqrt(width) * kRoundedValue, median(magnitudes), kLeastOfAttention);
}

// With x = gamma * n, |n|^2 <= d, a gate is g . n and an up u . n, where g and u are rows of the weight times gamma:
// |(g . n) (u . n)| <= d / 2 (|g| |u| + |g . u|), and |silu(z)| <= |z|. For n without a preferred direction the product
// is about d times smaller.
float swiglu_static_scale(const LinearWeightSource& gate_up, const std::vector<float>& gamma) {
  const std::int64_t width = gate_up.outputs / 2;
  const auto inputs = std::min<std::int64_t>(gate_up.inputs, static_cast<std::int64_t>(gamma.size()));
  const auto* codes = static_cast<const std::uint8_t*>(gate_up.values);
  static const std::array<float, 256> kValues = values_of_codes();
  std::vector<float> weights(gamma.size());
  for (std::size_t i = 0; i < gamma.size(); ++i) weights[i] = gamma[i] * gamma[i];
  std::vector<double> products;  // the largest by n of each column, over d
  for (std::int64_t j = 0; j < width; ++j) {
    const std::uint8_t* const gate = codes + j * gate_up.inputs;
    const std::uint8_t* const up = gate + width * gate_up.inputs;
    float gates = 0.0f;
    float ups = 0.0f;
    float both = 0.0f;
    for (std::int64_t i = 0; i < inputs; ++i) {
      const float weight = weights[static_cast<std::size_t>(i)];
      const float g = kValues[gate[i]];
      const float u = kValues[up[i]];
      gates += weight * g * g;
      ups += weight * u * u;
      both += weight * g * u;
    }
    const double scales = std::fabs(static_cast<double>(gate_up.scales[j]) * gate_up.scales[width + j]);
    products.push_back(scales * (std::sqrt(static_cast<double>(gates) * ups) + std::fabs(both)) / 2.0);
    if (std::isnan(products.back())) return 0.0f;
  }
  const double largest = *std::max_element(products.begin(), products.end());
  const auto d = static_cast<double>(gamma.size());
  return static_scale(d * largest * kRoundedProduct, median(products), kLeastOfSwiglu);
}

}  // namespace onerec
