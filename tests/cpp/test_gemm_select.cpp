// Which matrix product kernel the CUDA backend uses for a shape.
#include "backends/cuda/gemm/gemm_select.h"

#include <gtest/gtest.h>

#include <cstdint>

#include "backends/cuda/gemm/measured_gemms.h"

namespace onerec::cuda {
namespace {

constexpr GemmTypes kAllTypes[] = {GemmTypes::kFp8ToBf16, GemmTypes::kBf16ToBf16, GemmTypes::kBf16ToF32};
constexpr std::int64_t kRows[] = {1, 2, 3, 4, 8, 17, 64, 65, 128, 500, 512, 1024, 4096, 16384, 100000};

TEST(GemmSelect, ConfigurationsAreWhatTheKernelsCanBe) {
  for (const GemmConfig& config : kGemmConfigs) {
    EXPECT_TRUE(config.tile_rows == 64 || config.tile_rows == 128);
    EXPECT_EQ(config.tile_outputs % 16, 0);
    EXPECT_LE(config.tile_outputs, 256);
    EXPECT_EQ(config.tile_bytes % 128, 0) << "rows of a tile are swizzled in 128 bytes";
    const bool direct = config.schedule == GemmSchedule::kDirect;
    EXPECT_TRUE(config.cluster == 1 || config.cluster == 2 || (direct && config.cluster == 4));
    const bool split = config.schedule == GemmSchedule::kSplit;
    EXPECT_TRUE(config.depth_parts == 1 || split);
    EXPECT_LE(config.cluster * config.depth_parts, 8) << "more blocks than a cluster may have";
    if (direct || split || config.schedule == GemmSchedule::kCooperative) {
      EXPECT_EQ(config.tile_rows, 128) << "64 rows for each group of warps";
    } else {
      EXPECT_LE(config.tile_rows * config.tile_outputs, 128 * 128) << "the sums of a tile are one group's registers";
    }
  }
}

TEST(GemmSelect, TheModelGivesEveryShapeTheCheapestKernelOfItsTypes) {
  for (const GemmTypes types : kAllTypes) {
    for (const std::int64_t outputs : {16, 64, 1792, 8192, 14336}) {
      for (const std::int64_t inputs : {16, 256, 1792, 7168}) {
        for (const std::int64_t rows : kRows) {
          const GemmShape shape{.types = types, .rows = rows, .outputs = outputs, .inputs = inputs};
          const int chosen = model_gemm(shape);
          const double time = gemm_microseconds(shape, chosen);
          EXPECT_GT(time, 0.0);
          EXPECT_LE(time, gemm_microseconds(shape, kPlainGemm));
          ASSERT_GE(chosen, kPlainGemm);
          ASSERT_LT(chosen, kGemmConfigCount);
          for (int config = 0; config < kGemmConfigCount; ++config) {
            if (kGemmConfigs[config].types != types || !takes_outputs(kGemmConfigs[config], outputs)) continue;
            EXPECT_LE(time, gemm_microseconds(shape, config));
          }
          if (chosen != kPlainGemm) {
            EXPECT_EQ(kGemmConfigs[chosen].types, types);
            EXPECT_TRUE(takes_outputs(kGemmConfigs[chosen], outputs));
          }
        }
      }
    }
  }
}

TEST(GemmSelect, TheModelStreamsTheWeightsForOneRowAndUsesTheTensorCoresForMany) {
  for (const GemmTypes types : kAllTypes) {
    for (const std::int64_t outputs : {1792, 5376, 14336}) {
      GemmShape shape{.types = types, .rows = 1, .outputs = outputs, .inputs = 1792};
      EXPECT_EQ(select_gemm(shape), kPlainGemm);
      // The widest one in FP8 takes as long on the tensor cores: there the table decides.
      if (outputs != 14336 || types != GemmTypes::kFp8ToBf16) {
        EXPECT_EQ(model_gemm(shape), kPlainGemm);
      }
      shape.rows = 64;
      EXPECT_NE(model_gemm(shape), kPlainGemm);
      shape.rows = 16384;
      ASSERT_NE(model_gemm(shape), kPlainGemm);
      EXPECT_EQ(kGemmConfigs[model_gemm(shape)].tile_rows, 128);
    }
  }
}

// A line that the model would give by itself is one that was written before the model changed.
TEST(GemmSelect, TheTableHoldsOnlyWhatTheModelGetsWrong) {
  for (const MeasuredGemm& measured : kMeasuredGemms) {
    const GemmShape shape{
        .types = measured.types, .rows = measured.max_rows, .outputs = measured.outputs, .inputs = measured.inputs};
    EXPECT_NE(model_gemm(shape), measured.config)
        << measured.outputs << " x " << measured.inputs << ", " << measured.max_rows << " rows";
  }
}

TEST(GemmSelect, TheModelMakesFewTilesSmaller) {
  // 512 x 1792 in tiles of 128 x 256 would be 28 thread blocks for 132 multiprocessors.
  const GemmShape shape{.types = GemmTypes::kFp8ToBf16, .rows = 512, .outputs = 1792, .inputs = 1792};
  const GemmConfig& config = kGemmConfigs[model_gemm(shape)];
  EXPECT_LE(config.tile_rows * config.tile_outputs, 128 * 128);
}

// What was measured to be the quickest at one request of 512 beams: no block waits for another one's sums.
TEST(GemmSelect, ShortProductsOfFewRowsTakeSmallTiles) {
  const auto config = [](std::int64_t outputs, std::int64_t inputs) {
    return kGemmConfigs[select_gemm(
        {.types = GemmTypes::kFp8ToBf16, .rows = 512, .outputs = outputs, .inputs = inputs})];
  };
  const auto expect_tile = [&](std::int64_t outputs, std::int64_t inputs, int tile_outputs) {
    EXPECT_EQ(config(outputs, inputs).schedule, GemmSchedule::kSplit);
    EXPECT_EQ(config(outputs, inputs).depth_parts, 1);
    EXPECT_EQ(config(outputs, inputs).tile_outputs, tile_outputs);
  };
  expect_tile(640, 640, 32);
  expect_tile(1920, 640, 64);
  expect_tile(1408, 1408, 64);
  expect_tile(1792, 1792, 64);
  EXPECT_EQ(config(1792, 7168).depth_parts, 2);  // in a generation
}

TEST(GemmSelect, TheModelGivesSwigluAKernelForAnyShape) {
  for (const std::int64_t rows : kRows) {
    const int chosen =
        select_swiglu_gemm({.types = GemmTypes::kFp8ToBf16, .rows = rows, .outputs = 14336, .inputs = 1792});
    ASSERT_GE(chosen, 0);
    ASSERT_LT(chosen, kSwigluConfigCount);
  }
}

// What was measured to be the quickest at one request of 512 beams, and at 32.
TEST(GemmSelect, TheModelGivesSwigluTilesForAllMultiprocessors) {
  const auto outputs_of_tile = [](std::int64_t rows, std::int64_t outputs, std::int64_t inputs) {
    return kSwigluConfigs[select_swiglu_gemm(
                              {.types = GemmTypes::kFp8ToBf16, .rows = rows, .outputs = outputs, .inputs = inputs})]
        .tile_outputs;
  };
  EXPECT_EQ(outputs_of_tile(512, 14336, 1792), 224);
  EXPECT_EQ(outputs_of_tile(512, 5120, 640), 160);
  EXPECT_EQ(outputs_of_tile(512, 2816, 1408), 128);
  EXPECT_EQ(outputs_of_tile(16384, 14336, 1792), 256);
}

TEST(GemmSelect, MeasuredWinnersNameKernelsOfTheirTypes) {
  for (const MeasuredGemm& measured : kMeasuredGemms) {
    EXPECT_LE(measured.min_rows, measured.max_rows);
    ASSERT_GE(measured.config, kPlainGemm);
    ASSERT_LT(measured.config, kGemmConfigCount);
    if (measured.config != kPlainGemm) {
      EXPECT_EQ(kGemmConfigs[measured.config].types, measured.types);
      EXPECT_TRUE(takes_outputs(kGemmConfigs[measured.config], measured.outputs));
    }
    const GemmShape shape{
        .types = measured.types, .rows = measured.min_rows, .outputs = measured.outputs, .inputs = measured.inputs};
    EXPECT_EQ(select_gemm(shape), measured.config) << "an earlier row of the table hides this one";
  }
}

TEST(GemmSelect, ShapesThatWereNotMeasuredTakeTheModels) {
  for (const std::int64_t rows : kRows) {
    const GemmShape shape{.types = GemmTypes::kFp8ToBf16, .rows = rows, .outputs = 48, .inputs = 112};
    EXPECT_EQ(select_gemm(shape), model_gemm(shape));
  }
}

}  // namespace
}  // namespace onerec::cuda
