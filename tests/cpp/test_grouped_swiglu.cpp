// grouped_swiglu: in one kernel where the backend has one, else as its parts.
#include "ops/grouped_swiglu.h"

#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "ops/backend.h"
#include "support/grouped.h"
#include "support/runner.h"

namespace onerec {
namespace {

using test::Random;
using test::Runner;
using test::SwigluProblem;
using test::TestArray;
using test::TestDevice;
using test::TestInput;
using test::TestMatrix;
using test::TestOperand;
using test::TestWeight;

void check(const SwigluProblem::Sizes& sizes, int threads = 2) {
  SCOPED_TRACE(concat(sizes.inputs, " -> ", sizes.width, " first count ", sizes.counts[0], " capacity ", sizes.capacity,
                      " alignment ", sizes.alignment, " ", name_of(sizes.gate_up)));
  Runner runner(threads);
  SwigluProblem problem(runner.backend(), sizes);
  runner.run([&](OpContext& context) { grouped_swiglu(context, problem.params()); }, problem.outputs());
  problem.check();
}

TEST(GroupedSwiglu, AnySplitOfTheRows) {
  check({.counts = {0, 0, 0}, .capacity = 8, .inputs = 24, .width = 20});
  check({.counts = {1}, .capacity = 1, .inputs = 24, .width = 20}, 1);
  check({.counts = {0, 5, 0, 1, 11, 0, 3}, .capacity = 20, .inputs = 24, .width = 20});
  check({.counts = {0, 5, 0, 1, 11, 0, 3}, .capacity = 30, .inputs = 24, .width = 20, .padding = 5});
}

TEST(GroupedSwiglu, WidthsThatAreNotWholeBlocks) {
  check({.counts = {3, 7}, .capacity = 10, .inputs = 1, .width = 1});
  check({.counts = {3, 7}, .capacity = 10, .inputs = 131, .width = 150});
  check({.counts = {3, 7}, .capacity = 10, .inputs = 257, .width = 129, .gate_up = DType::kF32});
}

// Whole blocks of the result, whole tiles of rows: what tensor cores take.
TEST(GroupedSwiglu, AlignedExperts) {
  for (const std::int32_t alignment : {16, 32, 64, 128}) {
    check({.counts = {0, 5, alignment + 1, 0, 2},
           .capacity = 5 * alignment,
           .inputs = 272,
           .width = 128,
           .alignment = alignment,
           .padding = 16});
    if (test::test_device() == TestDevice::kSimt) break;  // it has one kernel, and is slow
    check({.counts = {0, 0}, .capacity = alignment, .inputs = 128, .width = 128, .alignment = alignment});
    check({.counts = {alignment, 3}, .capacity = 2 * alignment, .inputs = 1408, .width = 256, .alignment = alignment});
    check({.counts = {3 * alignment}, .capacity = 4 * alignment, .inputs = 16, .width = 384, .alignment = alignment});
    if (test::test_device() == TestDevice::kCpu) break;  // it does not look at the alignment
  }
}

TEST(GroupedSwiglu, NoCapacity) { check({.counts = {0, 0}, .capacity = 0, .inputs = 16, .width = 128}); }

TEST(GroupedSwiglu, TensorCoresDoAllOfItAtOnce) {
  Runner runner;
  const auto fuses = [&](const SwigluProblem::Sizes& sizes) {
    const SwigluProblem problem(runner.backend(), sizes);
    return runner.backend().fuses_grouped_swiglu(problem.params());
  };
  const bool can = test::test_device() == TestDevice::kCuda;
  EXPECT_EQ(fuses({.counts = {3}, .capacity = 16, .inputs = 128, .width = 128, .alignment = 16}), can);
  EXPECT_EQ(fuses({.counts = {3}, .capacity = 128, .inputs = 1408, .width = 256, .alignment = 128}), can);
  EXPECT_FALSE(fuses({.counts = {3}, .capacity = 8, .inputs = 128, .width = 128, .alignment = 8}));
  EXPECT_FALSE(fuses({.counts = {3}, .capacity = 16, .inputs = 128, .width = 136, .alignment = 16}));
}

// A NaN in a row makes that row's codes and scales NaN, and no other's.
TEST(GroupedSwiglu, NansStayInTheirRow) {
  constexpr std::int64_t kRows = 16;
  constexpr std::int64_t kWidth = 128;
  constexpr std::int64_t kNanRow = 5;
  Runner runner;
  Random random(3);
  const TestWeight weight(runner.backend(), random, WeightFormat::kFp8Block, DType::kE4M3, 1, 2 * kWidth, 128);
  TestOperand x(ScaleKind::kPerBlock, kRows, 128);
  x.fill_random(random);
  x.scales[kNanRow] = std::nanf("");
  TestMatrix gate_up(DType::kBF16, kRows, 2 * kWidth);
  TestOperand hidden(ScaleKind::kPerBlock, kRows, kWidth);
  const TestArray<std::int32_t> offsets({0, kRows});
  runner.run(
      [&](OpContext& context) {
        grouped_swiglu(context, {.x = x.view(),
                                 .weight = weight.packed(),
                                 .offsets = offsets.get(),
                                 .width = kWidth,
                                 .gate_up = gate_up.view(),
                                 .quantized = hidden.view(),
                                 .rows_capacity = kRows,
                                 .alignment = kRows});
      },
      {&gate_up, &hidden.codes, &hidden.scales});
  for (std::int64_t r = 0; r < kRows; ++r) {
    EXPECT_EQ(std::isnan(hidden.scale(r, 0)), r == kNanRow) << "row " << r;
    for (std::int64_t c = 0; c < kWidth; ++c) {
      ASSERT_EQ(std::isnan(hidden.codes.get(r, c)), r == kNanRow) << "row " << r << " column " << c;
    }
  }
}

// Whether or not the backend has a kernel for it, a tap sees what is multiplied, once.
TEST(GroupedSwiglu, ShowsItsInput) {
  class Tap final : public OperandTap {
   public:
    void observe(std::string_view weight, const Operand& operand, std::int64_t rows) override {
      seen.push_back(concat(weight, " ", rows, " x ", operand.values.cols));
    }
    std::vector<std::string> seen;
  };
  Runner runner;
  SwigluProblem problem(runner.backend(),
                        {.counts = {3}, .capacity = 32, .inputs = 128, .width = 128, .alignment = 16});
  Tap tap;
  runner.run_once([&](OpContext& context) {
    context.tap = &tap;
    grouped_swiglu(context, problem.params());
  });
  EXPECT_EQ(tap.seen, std::vector<std::string>{"test.weight 16 x 128"});
}

TEST(GroupedSwiglu, RefusesWhatItCannotDo) {
  Runner runner(1);
  Random random(1);
  const TestWeight weight(runner.backend(), random, WeightFormat::kFp8Block, DType::kE4M3, 2, 32, 200);
  const TestWeight channels(runner.backend(), random, WeightFormat::kFp8Channel, DType::kE4M3, 2, 32, 200);
  const TestInput x(random, WeightFormat::kFp8Block, DType::kE4M3, 4, 200);
  TestMatrix gate_up(DType::kBF16, 4, 32);
  TestOperand hidden(ScaleKind::kPerBlock, 4, 16);
  TestOperand per_row(ScaleKind::kPerRow, 4, 16);
  const TestArray<std::int32_t> offsets({0, 2, 4});
  const GroupedSwigluParams good{.x = x.view(),
                                 .weight = weight.packed(),
                                 .offsets = offsets.get(),
                                 .width = 16,
                                 .gate_up = gate_up.view(),
                                 .quantized = hidden.view(),
                                 .rows_capacity = 4};
  const auto refusal = [&](auto&& change) {
    GroupedSwigluParams params = good;
    change(params);
    return runner.refusal([&](OpContext& context) { grouped_swiglu(context, params); });
  };
  EXPECT_EQ(refusal([](GroupedSwigluParams&) {}), "");
  EXPECT_EQ(refusal([&](GroupedSwigluParams& p) { p.weight = channels.packed(); }),
            "[grouped_swiglu] got the weight 'test.weight' without scales of blocks, want kFp8Block. Call "
            "grouped_linear() and swiglu().");
  EXPECT_EQ(refusal([](GroupedSwigluParams& p) { p.width = 15; }),
            "[grouped_swiglu] got the weight 'test.weight' of 32 outputs, want 30, twice the width. Stack gates and "
            "ups.");
  EXPECT_EQ(refusal([&](GroupedSwigluParams& p) { p.quantized = per_row.view(); }),
            "[grouped_swiglu] got quantized as codes with one scale per row, want codes with one scale per row and 128 "
            "columns. Quantise it that way.");
  EXPECT_NE(refusal([](GroupedSwigluParams& p) { p.weight = nullptr; }), "");
  EXPECT_NE(refusal([](GroupedSwigluParams& p) { p.offsets = nullptr; }), "");
  EXPECT_NE(refusal([](GroupedSwigluParams& p) { p.alignment = 3; }), "");
  EXPECT_NE(refusal([](GroupedSwigluParams& p) { p.x.scale_stride = 3; }), "");
  EXPECT_NE(refusal([](GroupedSwigluParams& p) { p.gate_up.cols = 16; }), "");
  EXPECT_NE(refusal([](GroupedSwigluParams& p) { p.gate_up.dtype = DType::kE4M3; }), "");
  EXPECT_NE(refusal([](GroupedSwigluParams& p) { p.quantized.scales = nullptr; }), "");
  EXPECT_NE(refusal([](GroupedSwigluParams& p) { p.quantized.values.data = p.gate_up.data; }), "");
}

}  // namespace
}  // namespace onerec
