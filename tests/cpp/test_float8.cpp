// E4M3: the scalar conversions, their vectorised forms, and the quantisers of weights.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "backends/cpu/convert.h"
#include "core/bfloat16.h"
#include "core/error.h"
#include "core/float8.h"
#include "ops/quantize_weight.h"
#include "support/tensors.h"

namespace onerec {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

float bits_to_float(std::uint32_t bits) { return std::bit_cast<float>(bits); }

// The value of a finite code by the definition of the format.
double definition(int code) {
  const int exponent = (code >> 3) & 0xf;
  const int mantissa = code & 7;
  const double magnitude = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return (code & 0x80) != 0 ? -magnitude : magnitude;
}

bool is_nan_code(int code) { return (code & 0x7f) == 0x7f; }

TEST(Float8, EveryCodeHasItsValueAndComesBack) {
  for (int code = 0; code < 256; ++code) {
    const float value = from_e4m3(static_cast<std::uint8_t>(code));
    if (is_nan_code(code)) {
      EXPECT_TRUE(std::isnan(value)) << code;
    } else {
      EXPECT_EQ(value, definition(code)) << code;
      EXPECT_EQ(std::signbit(value), (code & 0x80) != 0) << code;
    }
    EXPECT_EQ(to_e4m3(value), code);
  }
}

TEST(Float8, HalvesGoToTheEvenCodeAndTheirNeighboursToTheNearest) {
  for (int code = 0; code + 1 < 0x7f; ++code) {
    const auto middle = static_cast<float>((definition(code) + definition(code + 1)) / 2);
    const int even = code % 2 == 0 ? code : code + 1;
    EXPECT_EQ(to_e4m3(middle), even) << code;
    EXPECT_EQ(to_e4m3(-middle), even | 0x80) << code;
    EXPECT_EQ(to_e4m3(std::nextafter(middle, 0.0f)), code);
    EXPECT_EQ(to_e4m3(std::nextafter(middle, kInfinity)), code + 1);
  }
}

TEST(Float8, LargeValuesSaturateAndNaNStays) {
  for (const float value : {448.0f, 448.1f, 464.0f, 480.0f, 1e30f, std::numeric_limits<float>::max(), kInfinity}) {
    EXPECT_EQ(to_e4m3(value), 0x7e) << value;
    EXPECT_EQ(to_e4m3(-value), 0xfe) << value;
  }
  EXPECT_EQ(to_e4m3(std::nanf("")) & 0x7f, 0x7f);
  EXPECT_EQ(to_e4m3(-0.0f), 0x80);
}

// Every sign, exponent and the mantissa bits around the rounding position, with three settings of the bits below.
TEST(Float8, TheVectorisedConversionGivesTheScalarCodes) {
  ONEREC_CPU_ONLY();
  constexpr std::uint32_t kBatch = 1u << 16;
  std::vector<float> values(kBatch);
  std::vector<std::uint8_t> codes(kBatch);
  std::int64_t different = 0;
  for (std::uint32_t high = 0; high < 0x10000u; high += 16) {
    for (std::uint32_t i = 0; i < kBatch; ++i) {
      // 16 upper halves with 4096 spread lower halves; 0x0000, 0x0001 and 0xffff are among these.
      const std::uint32_t low = (i >> 4) == 0 ? 0u : (i >> 4) == 1 ? 1u : (((i >> 4) << 4) | 0xfu);
      values[i] = bits_to_float(((high + (i & 15u)) << 16) | low);
    }
    cpu::f32_to_e4m3(values.data(), 1.0f, codes.data(), kBatch);
    for (std::uint32_t i = 0; i < kBatch; ++i) different += codes[i] != to_e4m3(values[i]);
  }
  EXPECT_EQ(different, 0);
}

TEST(Float8, ConversionMultipliesBeforeItRounds) {
  ONEREC_CPU_ONLY();
  test::Random random(1);
  const test::TestArray<float> values = test::random_floats(random, 1003, 50.0f);
  const test::TestArray<std::uint8_t> codes(values.size());
  for (const float inverse : {0.0f, 0.37f, 1e12f}) {
    cpu::f32_to_e4m3(values.get(), inverse, codes.get(), values.size());
    for (std::int64_t i = 0; i < values.size(); ++i) ASSERT_EQ(codes[i], to_e4m3(values[i] * inverse)) << i;
  }
  EXPECT_TRUE(codes.guards_intact());
}

TEST(Float8, TheVectorisedExpansionsGiveTheScalarValues) {
  ONEREC_CPU_ONLY();
  test::TestArray<std::uint8_t> codes(256 + 13);
  for (std::int64_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint8_t>(i);
  const test::TestArray<float> f32(codes.size());
  const test::TestArray<float> scaled(codes.size());
  const test::TestArray<BFloat16> bf16(codes.size());
  cpu::e4m3_to_f32(codes.get(), f32.get(), codes.size());
  cpu::e4m3_to_f32(codes.get(), 0.37f, scaled.get(), codes.size());
  cpu::e4m3_to_bf16(codes.get(), bf16.get(), codes.size());
  for (std::int64_t i = 0; i < codes.size(); ++i) {
    const float want = from_e4m3(codes[i]);
    if (std::isnan(want)) {
      EXPECT_TRUE(std::isnan(f32[i]) && std::isnan(scaled[i]) && std::isnan(to_float(bf16[i]))) << i;
      continue;
    }
    EXPECT_EQ(std::bit_cast<std::uint32_t>(f32[i]), std::bit_cast<std::uint32_t>(want)) << i;
    EXPECT_EQ(std::bit_cast<std::uint32_t>(to_float(bf16[i])), std::bit_cast<std::uint32_t>(want)) << i;
    EXPECT_EQ(scaled[i], 0.37f * want) << i;
  }
  EXPECT_TRUE(f32.guards_intact() && scaled.guards_intact() && bf16.guards_intact());
}

TEST(Float8, BFloat16RoundsToTheNearestEven) {
  test::Random random(2);
  std::vector<float> values = {0.0f,
                               -0.0f,
                               kInfinity,
                               -kInfinity,
                               std::nanf(""),
                               bits_to_float(0x3f808000u),
                               bits_to_float(0x3f818000u),
                               std::numeric_limits<float>::max(),
                               bits_to_float(0x7f800001u)};
  for (int i = 0; i < 1000; ++i) values.push_back(bits_to_float(static_cast<std::uint32_t>(random())));
  const auto count = static_cast<std::int64_t>(values.size());
  const test::TestArray<BFloat16> rounded(count);
  const test::TestArray<float> back(count);
  cpu::f32_to_bf16(values.data(), rounded.get(), count);
  cpu::bf16_to_f32(rounded.get(), back.get(), count);
  for (std::int64_t i = 0; i < count; ++i) {
    const float value = values[static_cast<std::size_t>(i)];
    EXPECT_EQ(rounded[i].bits, to_bfloat16(value).bits);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(back[i]));
    } else if (std::isfinite(value) && std::isfinite(back[i]) && std::abs(value) > 1e-37f) {
      EXPECT_LE(std::abs(static_cast<double>(back[i]) - value), std::ldexp(std::abs(static_cast<double>(value)), -8));
    }
  }
  EXPECT_EQ(to_bfloat16(bits_to_float(0x3f808000u)).bits, 0x3f80);
  EXPECT_EQ(to_bfloat16(bits_to_float(0x3f818000u)).bits, 0x3f82);
}

TEST(Float8, LargestMagnitudeIncludesInfinityAndNaN) {
  ONEREC_CPU_ONLY();
  EXPECT_EQ(cpu::largest_magnitude(nullptr, 0), 0.0f);
  std::vector<float> values(37, -1.0f);
  values[20] = -3.5f;
  EXPECT_EQ(cpu::largest_magnitude(values.data(), 37), 3.5f);
  values[36] = -kInfinity;
  EXPECT_EQ(cpu::largest_magnitude(values.data(), 37), kInfinity);
  values[0] = -std::nanf("");
  EXPECT_TRUE(std::isnan(cpu::largest_magnitude(values.data(), 37)));
}

TEST(Float8, ScalesAreAtLeastTheSmallest) {
  EXPECT_EQ(e4m3_scale(0.0f), 1e-12f);
  EXPECT_EQ(e4m3_scale(448.0f), 1.0f);
  EXPECT_EQ(e4m3_scale(1.0f), 1.0f / 448.0f);
  EXPECT_EQ(e4m3_scale(kInfinity), kInfinity);
  EXPECT_TRUE(std::isnan(e4m3_scale(std::nanf(""))));
}

bool is_power_of_two(float value) {
  int exponent = 0;
  return std::frexp(value, &exponent) == 0.5f;
}

TEST(Float8, RootPowersAreNextToTheRoot) {
  for (int exponent = -97; exponent < 97; ++exponent) {
    for (const float mantissa : {1.0f, 1.3f, std::nextafter(2.0f, 0.0f)}) {
      const float mean_square = std::ldexp(mantissa, exponent);
      const float power = root_power(mean_square);
      EXPECT_TRUE(is_power_of_two(power)) << mean_square;
      const double ratio = static_cast<double>(mean_square) / power / power;
      EXPECT_GE(ratio, 0.5) << mean_square;
      EXPECT_LT(ratio, 2.0) << mean_square;
    }
  }
}

TEST(Float8, RootPowersAreBounded) {
  const float largest = std::numeric_limits<float>::max();
  for (const float small : {0.0f, std::numeric_limits<float>::denorm_min(), 1e-40f, std::nextafter(0x1p-97f, 0.0f)}) {
    EXPECT_EQ(root_power(small), 0x1p-48f) << small;
  }
  for (const float large : {0x1p97f, largest, kInfinity, std::nanf(""), -std::nanf("")}) {
    EXPECT_EQ(root_power(large), 0x1p48f) << large;
  }
}

TEST(Float8, NormCodeScalesAreFourTimesThePowerOfTwoAboveGamma) {
  for (int exponent = -39; exponent < 40; ++exponent) {
    const float power = std::ldexp(1.0f, exponent);
    EXPECT_EQ(norm_code_scale(power), 0.5f * power);
    EXPECT_EQ(norm_code_scale(std::nextafter(power, 0.0f)), 0.5f * power);
    EXPECT_EQ(norm_code_scale(std::nextafter(power, kInfinity)), power);
    EXPECT_EQ(norm_code_scale(1.5f * power), power);
  }
  for (const float small : {0.0f, 1e-42f, 0x1p-41f, 0x1p-40f, std::nanf(""), -1.0f}) {
    EXPECT_EQ(norm_code_scale(small), 0x1p-41f) << small;
  }
  for (const float large : {0x1p40f, 0x1p41f, std::numeric_limits<float>::max(), kInfinity}) {
    EXPECT_EQ(norm_code_scale(large), 0x1p39f) << large;
  }
}

// Products with 1 / s stand for divisions by s.
TEST(Float8, ReciprocalsOfNormScalesAreExact) {
  for (const float mean_square : {0.0f, 1.0f, kInfinity}) {
    for (const float gamma : {0.0f, 1.0f, kInfinity}) {
      const float scale = root_power(mean_square) * norm_code_scale(gamma);
      EXPECT_TRUE(is_power_of_two(scale));
      EXPECT_TRUE(is_power_of_two(1.0f / scale));
      EXPECT_EQ(scale * (1.0f / scale), 1.0f);
    }
  }
}

class QuantizeWeight : public testing::TestWithParam<DType> {};

TEST_P(QuantizeWeight, ChannelsAndBlocksFollowTheFormula) {
  test::Random random(3);
  for (const auto& [n, k] : {std::pair<std::int64_t, std::int64_t>{1, 1}, {7, 131}, {129, 128}, {300, 257}}) {
    test::TestMatrix weight = test::random_matrix(random, GetParam(), n, k);
    for (std::int64_t c = 0; c < k; ++c) weight.set(0, c, 0.0f);
    const test::TestArray<std::uint8_t> codes(n * k);
    for (const std::int64_t block : {std::int64_t{0}, kScaleBlock}) {
      const bool channel = block == 0;
      const std::int64_t columns = channel ? 1 : scale_blocks(k);
      const test::TestArray<float> scales(channel ? n : scale_blocks(n) * columns);
      (channel ? quantize_channel : quantize_block)(GetParam(), weight.data(), n, k, codes.get(), scales.get());
      const auto group = [&](std::int64_t r, std::int64_t c) { return channel ? r : r / block * columns + c / block; };
      std::vector<float> amax(static_cast<std::size_t>(scales.size()));
      for (std::int64_t r = 0; r < n; ++r) {
        for (std::int64_t c = 0; c < k; ++c) {
          float& largest = amax[static_cast<std::size_t>(group(r, c))];
          largest = std::max(largest, std::abs(weight.get(r, c)));
        }
      }
      for (std::int64_t r = 0; r < n; ++r) {
        for (std::int64_t c = 0; c < k; ++c) {
          const float scale = scales[group(r, c)];
          ASSERT_EQ(scale, std::max(amax[static_cast<std::size_t>(group(r, c))] / 448.0f, 1e-12f));
          ASSERT_EQ(codes[r * k + c], to_e4m3(weight.get(r, c) * (1.0f / scale)));
        }
      }
      EXPECT_TRUE(codes.guards_intact() && scales.guards_intact());
    }
  }
}

TEST_P(QuantizeWeight, RefusesOtherTypesAndEmptyRows) {
  EXPECT_THROW(quantize_channel(DType::kE4M3, nullptr, 1, 1, nullptr, nullptr), ArgumentError);
  EXPECT_THROW(quantize_block(GetParam(), nullptr, 1, 0, nullptr, nullptr), ArgumentError);
}

INSTANTIATE_TEST_SUITE_P(Types, QuantizeWeight, testing::Values(DType::kF32, DType::kBF16),
                         [](const auto& info) { return std::string(name_of(info.param)); });

}  // namespace
}  // namespace onerec
