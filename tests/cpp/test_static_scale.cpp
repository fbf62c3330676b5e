// Static scales: no input that the weights allow is beyond them, and they are not taken where codes would lose bits.
#include "model/static_scale.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "core/float8.h"
#include "support/tensors.h"

namespace onerec::test {
namespace {

constexpr std::int64_t kInputs = 64;
constexpr std::int64_t kWidth = 24;

bool power_of_two(float value) { return (std::bit_cast<std::uint32_t>(value) & 0x7fffffu) == 0; }

struct GateUp {
  std::vector<std::uint8_t> codes = std::vector<std::uint8_t>(2 * kWidth * kInputs);
  std::vector<float> scales = std::vector<float>(2 * kWidth);

  explicit GateUp(Random& random) {
    for (std::uint8_t& code : codes) code = to_e4m3(normal(random, 100.0f));
    for (float& scale : scales) scale = 0.001f * (1.0f + static_cast<float>(uniform(random, 0, 100)) / 100.0f);
  }
  LinearWeightSource source() const {
    return {.name = "gate_up",
            .outputs = 2 * kWidth,
            .inputs = kInputs,
            .format = WeightFormat::kFp8Channel,
            .dtype = DType::kE4M3,
            .values = codes.data(),
            .scales = scales.data()};
  }
  double weight(std::int64_t output, std::int64_t input) const {
    return static_cast<double>(from_e4m3(codes[static_cast<std::size_t>(output * kInputs + input)])) *
           scales[static_cast<std::size_t>(output)];
  }
  // The product for a normed row of the length that a norm allows, in `direction`.
  double product(std::int64_t j, const std::vector<double>& direction, const std::vector<float>& gamma) const {
    double length = 0.0;
    for (const double value : direction) length += value * value;
    const double unit = std::sqrt(static_cast<double>(kInputs) / length);
    double gate = 0.0;
    double up = 0.0;
    for (std::int64_t i = 0; i < kInputs; ++i) {
      const auto at = static_cast<std::size_t>(i);
      const double x = direction[at] * unit * gamma[at];
      gate += weight(j, i) * x;
      up += weight(kWidth + j, i) * x;
    }
    return gate / (1.0 + std::exp(-gate)) * up;
  }
};

std::vector<float> random_gamma(Random& random) {
  std::vector<float> gamma(kInputs);
  for (float& g : gamma) g = 0.5f + static_cast<float>(uniform(random, 0, 100)) / 100.0f;
  return gamma;
}

// The worst row for one hidden column lies between its gate's and its up's directions.
TEST(StaticScale, TakesTheWorstRowOfSwiglu) {
  Random random(3);
  for (int trial = 0; trial < 20; ++trial) {
    const GateUp weights(random);
    const std::vector<float> gamma = random_gamma(random);
    const float scale = swiglu_static_scale(weights.source(), gamma);
    ASSERT_GT(scale, 0.0f);
    EXPECT_TRUE(power_of_two(scale));
    double worst = 0.0;
    for (std::int64_t j = 0; j < kWidth; ++j) {
      double gates = 0.0;
      double ups = 0.0;
      for (std::int64_t i = 0; i < kInputs; ++i) {
        const double g = gamma[static_cast<std::size_t>(i)];
        gates += std::pow(weights.weight(j, i) * g, 2);
        ups += std::pow(weights.weight(kWidth + j, i) * g, 2);
      }
      for (const double sign : {1.0, -1.0}) {
        std::vector<double> direction(kInputs);
        for (std::int64_t i = 0; i < kInputs; ++i) {
          const double g = gamma[static_cast<std::size_t>(i)];
          direction[static_cast<std::size_t>(i)] =
              g * (weights.weight(j, i) / std::sqrt(gates) + sign * weights.weight(kWidth + j, i) / std::sqrt(ups));
        }
        worst = std::max(worst, std::abs(weights.product(j, direction, gamma)));
      }
    }
    EXPECT_LE(worst * 1.2, 448.0 * scale);  // room for the codes of the input
    EXPECT_GT(worst * 4.0, 448.0 * scale);  // no more than a power of two beyond that
  }
}

TEST(StaticScale, SwigluOfUnevenWeightsHasNone) {
  Random random(4);
  GateUp weights(random);
  const std::vector<float> gamma = random_gamma(random);
  const float even = swiglu_static_scale(weights.source(), gamma);
  weights.scales[3] *= 4.0f;
  EXPECT_GT(swiglu_static_scale(weights.source(), gamma), even);
  weights.scales[3] *= 1000.0f;
  EXPECT_EQ(swiglu_static_scale(weights.source(), gamma), 0.0f);
  weights.scales[3] = NAN;
  EXPECT_EQ(swiglu_static_scale(weights.source(), gamma), 0.0f);
  weights.scales.assign(weights.scales.size(), 0.0f);
  EXPECT_EQ(swiglu_static_scale(weights.source(), gamma), 0.0f);
}

TEST(StaticScale, TakesEveryNormedRow) {
  std::vector<float> gamma(1792, 1.0f);
  gamma[5] = -1.5f;
  const float scale = attention_static_scale(gamma);
  EXPECT_TRUE(power_of_two(scale));
  const double worst = 1.5 * std::sqrt(1792.0);
  EXPECT_LE(worst, 448.0 * scale);
  EXPECT_GT(worst * 2.1, 448.0 * scale);
  gamma[5] = 100.0f;
  EXPECT_EQ(attention_static_scale(gamma), 0.0f);
  gamma[5] = NAN;
  EXPECT_EQ(attention_static_scale(gamma), 0.0f);
  EXPECT_EQ(attention_static_scale({}), 0.0f);
}

}  // namespace
}  // namespace onerec::test
