// linear: what the tap sees, what is refused, and what packing a weight says.
#include <gtest/gtest.h>

#include <string>

#include "ops/linear.h"
#include "support/runner.h"
#include "support/weights.h"

namespace onerec {
namespace {

using test::Random;
using test::Runner;
using test::TestArray;
using test::TestInput;
using test::TestMatrix;
using test::TestWeight;

class Tap final : public OperandTap {
 public:
  void observe(std::string_view weight, const Operand& operand, std::int64_t rows) override {
    seen = concat(weight, " ", rows, " x ", operand.values.cols);
  }
  std::string seen;
};

TEST(LinearContract, TheTapSeesLiveRows) {
  Runner runner(1);
  Random random(1);
  const TestWeight weight(runner.backend(), random, WeightFormat::kDense, DType::kF32, 1, 4, 8);
  const TestInput x(random, WeightFormat::kDense, DType::kF32, 5, 8);
  TestMatrix y(DType::kF32, 5, 4);
  const TestArray<std::int32_t> count({3});
  Tap tap;
  OpContext context{.backend = runner.backend(), .stream = runner.stream(), .tap = &tap};
  const LinearParams params{.x = x.view(), .weight = weight.packed(), .y = y.view(), .rows = {5, count.get()}};
  context.measuring = true;
  linear(context, params);
  EXPECT_EQ(tap.seen, "");
  const test::GuardedBuffer workspace(context.workspace_needed);
  context.workspace = {workspace.data(), workspace.bytes()};
  context.measuring = false;
  linear(context, params);
  runner.stream().synchronize();
  EXPECT_EQ(tap.seen, "test.weight 3 x 8");
}

TEST(LinearContract, RefusesWhatItCannotDo) {
  Runner runner(1);
  Random random(1);
  const TestWeight weight(runner.backend(), random, WeightFormat::kDense, DType::kF32, 1, 16, 8);
  const TestWeight coded(runner.backend(), random, WeightFormat::kFp8Channel, DType::kE4M3, 1, 16, 8);
  const TestWeight blocks(runner.backend(), random, WeightFormat::kFp8Block, DType::kE4M3, 1, 16, 8);
  const TestWeight stack(runner.backend(), random, WeightFormat::kDense, DType::kF32, 2, 16, 8);
  const TestInput x(random, WeightFormat::kDense, DType::kF32, 4, 8);
  const TestInput x_coded(random, WeightFormat::kFp8Channel, DType::kE4M3, 4, 8);
  TestMatrix y(DType::kF32, 4, 16);
  const LinearParams good{.x = x.view(), .weight = weight.packed(), .y = y.view(), .rows = {4}};
  const auto refusal = [&](auto&& change) {
    LinearParams params = good;
    change(params);
    return runner.refusal([&](OpContext& context) { linear(context, params); });
  };
  EXPECT_EQ(refusal([](LinearParams&) {}), "");
  EXPECT_EQ(refusal([](LinearParams& p) { p.x.values.cols = 7; }),
            "[linear] got x of 7 columns, want 8 (the inputs of weight 'test.weight'). Pad x, or pass the weight that "
            "belongs to it.");
  EXPECT_EQ(refusal([](LinearParams& p) { p.y.cols = 15; }),
            "[linear] got y of 15 columns, want 16. Pass a matrix of that width.");
  EXPECT_EQ(refusal([](LinearParams& p) { p.y.dtype = DType::kI32; }),
            "[linear] got y of int32, want float32 or bfloat16. Convert it, or correct the view.");
  EXPECT_EQ(refusal([](LinearParams& p) { p.x.values.dtype = DType::kBF16; }),
            "[linear] got x of bfloat16, want float32. Convert it, or correct the view.");
  EXPECT_EQ(refusal([](LinearParams& p) { p.rows.capacity = 5; }),
            "[linear] got x of 4 rows, want at least 5. Pass a matrix that holds the extent's capacity.");
  EXPECT_EQ(refusal([](LinearParams& p) { p.y.stride = 15; }),
            "[linear] got y with stride 15, want at least its 16 columns. Correct the stride, which is in elements.");
  EXPECT_EQ(refusal([](LinearParams& p) { p.x.values.data = nullptr; }),
            "[linear] got no data for x, want 4 x 8 elements. Pass their address.");
  EXPECT_EQ(refusal([](LinearParams& p) { p.weight = nullptr; }),
            "[linear] got no weight, want an array. Pass its address.");
  EXPECT_EQ(refusal([](LinearParams& p) { p.rows.capacity = -1; }),
            "[linear] got a capacity of -1 for rows, want at least 0. Correct the extent.");
  EXPECT_NE(refusal([&](LinearParams& p) { p.x = x_coded.view(); }), "");
  EXPECT_NE(refusal([&](LinearParams& p) { p.weight = coded.packed(); }), "");
  EXPECT_NE(refusal([&](LinearParams& p) { p.weight = blocks.packed(); }), "");
  EXPECT_NE(refusal([&](LinearParams& p) { p.weight = stack.packed(); }), "");
  EXPECT_NE(refusal([&](LinearParams& p) { p.residual = {y.data(), DType::kBF16, 4, 16, 16}; }), "");
  EXPECT_NE(refusal([&](LinearParams& p) {
              p.weight = coded.packed();
              p.x = x_coded.view();
              p.x.scales = nullptr;
            }),
            "");
  // Overlaps are seen when the addresses are real.
  EXPECT_EQ(refusal([&](LinearParams& p) { p.y = {p.x.values.data, DType::kF32, 4, 16, 16}; }),
            "[linear] got x and y that overlap in memory, want them apart. Use two buffers.");
  EXPECT_NE(refusal([&](LinearParams& p) { p.residual = {y.data() + 4, DType::kF32, 4, 16, 16}; }), "");
  OpContext context{.backend = runner.backend(), .stream = runner.stream()};
  TestMatrix y16(DType::kBF16, 4, 16);
  LinearParams staged = good;
  staged.weight = coded.packed();
  staged.x = x_coded.view();
  if (runner.measure([&](OpContext& measuring) { linear(measuring, staged); }) > 0) {
    EXPECT_THROW(linear(context, staged), ArgumentError) << "a workspace that is too small";
  }
}

TEST(LinearContract, PackingRefusesAndCounts) {
  Runner runner(1);
  Random random(1);
  const TestWeight weight(runner.backend(), random, WeightFormat::kDense, DType::kF32, 1, 256, 256);
  EXPECT_GE(weight.packed()->bytes, 256u * 256u * 4u);
  EXPECT_LE(weight.packed()->bytes, 256u * 256u * 4u + 4096u);
  EXPECT_EQ(weight.packed()->name, "test.weight");

  LinearWeightSource source = weight.source("w", 1);
  EXPECT_EQ(runner.backend().why_not(source), "");
  source.dtype = DType::kE4M3;
  EXPECT_EQ(runner.backend().why_not(source),
            "linear weight 'w': got float8_e4m3, want float32 or bfloat16 in this format");
  EXPECT_THROW(runner.backend().pack_linear(source), ArgumentError);
  source = weight.source("w", 1);
  source.inputs = 0;
  EXPECT_NE(runner.backend().why_not(source), "");
  source = weight.source("w", 1);
  source.values = nullptr;
  EXPECT_THROW(runner.backend().pack_linear(source), ArgumentError);
  source = weight.source("w", 1);
  source.format = WeightFormat::kFp8Channel;
  source.dtype = DType::kE4M3;
  EXPECT_THROW(runner.backend().pack_linear(source), ArgumentError) << "no scales";
}

}  // namespace
}  // namespace onerec
