// Problems for products of rows sorted by expert, and their oracles.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "ops/grouped_swiglu.h"
#include "ops/linear_swiglu.h"
#include "support/oracle.h"
#include "support/weights.h"

namespace onerec::test {

// Where each expert's rows start.
inline std::vector<std::int32_t> aligned_offsets(const std::vector<std::int32_t>& counts, std::int32_t alignment) {
  std::vector<std::int32_t> offsets = {0};
  for (const std::int32_t count : counts) {
    offsets.push_back(offsets.back() + (count + alignment - 1) / alignment * alignment);
  }
  return offsets;
}

struct Interval {
  double low;
  double high;
};

// Codes of silu(gate) * up with their inputs. Every expert has `counts` rows and padding up to the alignment. A weight
// with a scale per output is one of a single expert, and its codes have a scale per row.
class SwigluProblem {
 public:
  struct Sizes {
    std::vector<std::int32_t> counts;
    std::int64_t capacity;
    std::int64_t inputs;
    std::int64_t width;
    std::int32_t alignment = 1;
    std::int64_t padding = 0;
    DType gate_up = DType::kBF16;
    WeightFormat format = WeightFormat::kFp8Block;
    float static_scale = 0.0f;  // of `hidden`, for linear_params()
  };

  SwigluProblem(Backend& backend, const Sizes& sizes)
      : sizes_(sizes),
        random_(7),
        weight_(backend, random_, sizes.format, DType::kE4M3, static_cast<std::int64_t>(sizes.counts.size()),
                2 * sizes.width, sizes.inputs),
        x_(random_, sizes.format, DType::kE4M3, sizes.capacity, sizes.inputs, sizes.padding),
        offsets_(aligned_offsets(sizes.counts, sizes.alignment)),
        gate_up(sizes.gate_up, sizes.capacity, 2 * sizes.width, sizes.padding),
        hidden(sizes.format == WeightFormat::kFp8Channel ? ScaleKind::kPerRow : ScaleKind::kPerBlock, sizes.capacity,
               sizes.width, sizes.padding, per_row() ? 0 : sizes.padding) {}

  GroupedSwigluParams params() const {
    return {.x = x_.view(),
            .weight = weight_.packed(),
            .offsets = offsets_.get(),
            .width = sizes_.width,
            .gate_up = gate_up.view(),
            .quantized = hidden.view(),
            .rows_capacity = sizes_.capacity,
            .alignment = sizes_.alignment};
  }

  LinearSwigluParams linear_params() const {
    Operand quantized = hidden.view();
    quantized.static_scale = sizes_.static_scale;
    return {.x = x_.view(),
            .weight = weight_.packed(),
            .width = sizes_.width,
            .gate_up = gate_up.view(),
            .quantized = quantized,
            .rows = {sizes_.capacity, offsets_.get() + 1}};
  }

  std::vector<GuardedBuffer*> outputs() { return {&gate_up, &hidden.codes, &hidden.scales}; }

  // `hidden` is as the contract says, and nothing was written beside it.
  void check() const {
    for (std::size_t expert = 0; expert < sizes_.counts.size(); ++expert) {
      const std::int64_t begin = offsets_[static_cast<std::int64_t>(expert)];
      for (std::int64_t r = begin; r < begin + sizes_.counts[expert]; ++r) {
        for (std::int64_t c = 0; c < sizes_.width; c += group()) {
          check_group(static_cast<std::int64_t>(expert), r, c);
          if (testing::Test::HasFatalFailure()) return;
        }
      }
    }
    const std::int64_t live = offsets_[static_cast<std::int64_t>(sizes_.counts.size())];
    for (std::int64_t r = 0; r < sizes_.capacity; ++r) {
      const unsigned char* const row = hidden.codes.data() + r * hidden.codes.stride();
      for (std::int64_t c = r < live ? sizes_.width : 0; c < hidden.codes.stride(); ++c) {
        ASSERT_EQ(row[c], kPoison) << "row " << r << " column " << c;
      }
    }
    const std::int64_t scale_rows = per_row() ? sizes_.capacity : hidden.scale_stride;
    for (std::int64_t b = 0; b < (per_row() ? 1 : scale_blocks(sizes_.width)); ++b) {
      for (std::int64_t r = live; r < scale_rows; ++r) {
        ASSERT_TRUE(std::isnan(hidden.scales[b * hidden.scale_stride + r])) << "scale " << b << " of row " << r;
      }
    }
  }

 private:
  bool per_row() const { return sizes_.format == WeightFormat::kFp8Channel; }
  std::int64_t group() const { return per_row() ? sizes_.width : kScaleBlock; }  // columns that share a scale

  // What the op may have stored as column n of the product.
  Interval product(std::int64_t expert, std::int64_t r, std::int64_t n) const {
    const Dot exact = dot(x_, r, weight_, expert, n, sizes_.inputs);
    if (sizes_.gate_up == DType::kF32) return {exact.sum - exact.slack, exact.sum + exact.slack};
    return {rounded(exact.sum - exact.slack), rounded(exact.sum + exact.slack)};
  }

  static double rounded(double value) { return to_float(to_bfloat16(static_cast<float>(value))); }

  static double silu(double x) { return x / (1.0 + std::exp(-x)); }

  // Of silu(gate) * up before it is quantised.
  Interval hidden_value(std::int64_t expert, std::int64_t r, std::int64_t c) const {
    constexpr double kLowestSilu = -1.2784645427610738;  // where silu turns
    const Interval gate = product(expert, r, c);
    const Interval up = product(expert, r, sizes_.width + c);
    std::array<double, 3> silus = {silu(gate.low), silu(gate.high), silu(gate.low)};
    if (gate.low < kLowestSilu && kLowestSilu < gate.high) silus[2] = silu(kLowestSilu);
    Interval value = {INFINITY, -INFINITY};
    for (const double s : silus) {
      for (const double u : {up.low, up.high}) {
        value.low = std::min(value.low, s * u);
        value.high = std::max(value.high, s * u);
      }
    }
    // Fused with a dense product, the exponential is the hardware's.
    const int bits = per_row() ? 15 : 21;
    const double arithmetic = std::ldexp(std::max(std::abs(value.low), std::abs(value.high)), -bits);
    value = {value.low - arithmetic, value.high + arithmetic};
    // linear_swiglu() may round before it quantises.
    if (!per_row() || sizes_.gate_up == DType::kF32) return value;
    return {std::min(value.low, rounded(value.low)), std::max(value.high, rounded(value.high))};
  }

  void check_group(std::int64_t expert, std::int64_t r, std::int64_t first) const {
    const std::int64_t end = std::min(first + group(), sizes_.width);
    std::vector<Interval> wanted;
    Interval largest = {0.0, 0.0};
    for (std::int64_t c = first; c < end; ++c) {
      const Interval want = hidden_value(expert, r, c);
      wanted.push_back(want);
      const bool crosses_zero = want.low < 0.0 && 0.0 < want.high;
      const double low = std::min(std::abs(want.low), std::abs(want.high));
      largest.low = std::max(largest.low, crosses_zero ? 0.0 : low);
      largest.high = std::max({largest.high, std::abs(want.low), std::abs(want.high)});
    }
    const double scale = hidden.scale(r, first);
    constexpr double kOff = 1e-6;
    if (scale != sizes_.static_scale) {
      ASSERT_GE(scale, std::max(largest.low / 448.0, 1e-12) * (1.0 - kOff)) << "row " << r << " columns from " << first;
      ASSERT_LE(scale, std::max(largest.high / 448.0, 1e-12) * (1.0 + kOff))
          << "row " << r << " columns from " << first;
    }
    for (std::int64_t c = first; c < end; ++c) {
      const Interval want = wanted[static_cast<std::size_t>(c - first)];
      const double got = hidden.codes.get(r, c) * scale;
      const auto half_step = [&](double value) {
        return rounding_error(DType::kE4M3, value / scale) * scale * (1.0 + 1e-5);
      };
      ASSERT_GE(got, want.low - half_step(want.low)) << "row " << r << " column " << c;
      ASSERT_LE(got, want.high + half_step(want.high)) << "row " << r << " column " << c;
    }
  }

  Sizes sizes_;
  Random random_;
  TestWeight weight_;
  TestInput x_;
  TestArray<std::int32_t> offsets_;

 public:
  TestMatrix gate_up;
  TestOperand hidden;
};

}  // namespace onerec::test
