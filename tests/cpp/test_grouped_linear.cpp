// grouped_linear: rows sorted by expert, in every format, for every way in which the rows may fall on the experts.
#include "ops/grouped_linear.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "support/device.h"
#include "support/oracle.h"
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

struct Format {
  WeightFormat format;
  DType dtype;
  DType out;
};

std::vector<std::int32_t> offsets_of(const std::vector<std::int32_t>& counts, std::int32_t alignment) {
  std::vector<std::int32_t> offsets = {0};
  for (const std::int32_t count : counts) {
    offsets.push_back(offsets.back() + (count + alignment - 1) / alignment * alignment);
  }
  return offsets;
}

class GroupedLinear : public testing::TestWithParam<Format> {
 protected:
  void check(const std::vector<std::int32_t>& counts, std::int64_t capacity, std::int64_t inputs, std::int64_t outputs,
             std::int64_t padding = 0, int threads = 2, std::int32_t alignment = 1) {
    const auto [format, dtype, out] = GetParam();
    SCOPED_TRACE(
        concat(inputs, " -> ", outputs, " first count ", counts[0], " capacity ", capacity, " alignment ", alignment));
    const auto experts = static_cast<std::int64_t>(counts.size());
    Random random(5);
    Runner runner(threads);
    const TestWeight weight(runner.backend(), random, format, dtype, experts, outputs, inputs);
    const TestInput x(random, format, dtype, capacity, inputs, padding);
    const TestArray<std::int32_t> offsets(offsets_of(counts, alignment));
    TestMatrix y(out, capacity, outputs, padding);
    const std::vector<unsigned char> unwritten = y.row_bytes(0);
    const GroupedLinearParams params{.x = x.view(),
                                     .weight = weight.packed(),
                                     .offsets = offsets.get(),
                                     .y = y.view(),
                                     .rows_capacity = capacity,
                                     .alignment = alignment};
    runner.run([&](OpContext& context) { grouped_linear(context, params); }, {&y});

    for (std::int64_t expert = 0; expert < experts; ++expert) {
      const std::int64_t begin = offsets[expert];
      for (std::int64_t r = begin; r < begin + counts[static_cast<std::size_t>(expert)]; ++r) {
        for (std::int64_t n = 0; n < outputs; ++n) {
          const test::Dot want = test::dot(x, r, weight, expert, n, inputs);
          test::expect_close(out, y.get(r, n), want.sum, want.slack, "y", r, n);
          if (HasFatalFailure()) return;
        }
      }
    }
    for (std::int64_t r = offsets[experts]; r < capacity; ++r) ASSERT_EQ(y.row_bytes(r), unwritten) << "row " << r;
  }
};

TEST_P(GroupedLinear, AnySplitOfTheRows) {
  check({0, 0, 0}, 8, 24, 40);
  check({1}, 1, 24, 40);
  check({0, 5, 0, 1, 31, 0, 3}, 40, 24, 40);
  check({0, 5, 0, 1, 31, 0, 3}, 50, 24, 40, 5);
  const auto many = static_cast<std::int32_t>(test::at_most_on_simt(130, 20));
  check({67, 1, 0, many}, 68 + many, 48, 72);
  check({67, 1, 0, many}, 300, 48, 72, 0, 1);
}

TEST_P(GroupedLinear, WidthsThatAreNotWholeBlocks) {
  check({3, 17}, 20, 1, 1);
  check({3, 17}, 20, 131, 300);
  check({3, 17}, 20, 257, 129);
}

TEST_P(GroupedLinear, AlignedExperts) {
  for (const std::int32_t alignment : {16, 64, 128}) {
    check({0, 0, 0}, 2 * alignment, 24, 40, 0, 2, alignment);
    check({1}, alignment, 24, 40, 0, 2, alignment);
    check({0, 5, 0, 1, 131, 0, 16}, 8 * alignment + 128, 48, 72, 0, 2, alignment);
    check({0, 0, 70, 0}, 128 + alignment, 256, 130, 16, 2, alignment);
    check({70, 0}, 128, 130, 24, 0, 1, alignment);
    if (test::test_device() == test::TestDevice::kSimt) break;  // slow, and one kernel for all
  }
}

// Several blocks of K and a part, several tiles of outputs and a part: what whole tiles on tensor cores take.
TEST_P(GroupedLinear, AlignedWidths) {
  for (const std::int32_t alignment : {16, 32, 64, 128}) {
    check({0, 33, 1, 0, 65}, 512, 272, 264, 16, 2, alignment);
    if (test::test_device() == test::TestDevice::kSimt) break;  // it has one kernel, and is slow
  }
}

TEST_P(GroupedLinear, RealShape) { check({40, 3, 0, 21, 64, 1, 9, 30}, 192, 256, test::at_most_on_simt(512, 40)); }

TEST_P(GroupedLinear, NoCapacity) { check({0, 0}, 0, 16, 16); }

// A row's bits depend on its expert alone, not on the rows beside it, the other experts, or the thread count.
TEST_P(GroupedLinear, RowsDoNotDependOnTheBatch) {
  if (!test::rows_are_independent()) GTEST_SKIP() << "this device or library does not promise it";
  const auto [format, dtype, out] = GetParam();
  const std::int64_t rows = test::at_most_on_simt(260, 40);
  constexpr std::int64_t kInputs = 320;
  const std::int64_t outputs = test::at_most_on_simt(384, 40);
  std::vector<unsigned char> alone;
  for (const int threads : {1, 2, 3}) {
    Runner runner(threads);
    Random random(9);
    const TestWeight weight(runner.backend(), random, format, dtype, 2, outputs, kInputs);
    const TestInput x(random, format, dtype, rows, kInputs);
    const auto run = [&](std::int32_t first) {
      TestMatrix y(out, rows, outputs);
      const TestArray<std::int32_t> offsets({0, first, static_cast<std::int32_t>(rows)});
      runner.run_once([&](OpContext& context) {
        grouped_linear(
            context,
            {.x = x.view(), .weight = weight.packed(), .offsets = offsets.get(), .y = y.view(), .rows_capacity = rows});
      });
      return y.snapshot();
    };
    if (alone.empty()) alone = run(rows);
    for (const std::int32_t first : {1, 2, 31, 33, 128, 255}) {
      if (first > rows) break;
      const std::vector<unsigned char> got = run(first);
      const auto bytes = static_cast<std::ptrdiff_t>(first * outputs) * static_cast<std::ptrdiff_t>(size_of(out));
      ASSERT_TRUE(std::equal(got.begin(), got.begin() + bytes, alone.begin()))
          << first << " rows, " << threads << " threads";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, GroupedLinear,
                         testing::Values(Format{WeightFormat::kDense, DType::kF32, DType::kF32},
                                         Format{WeightFormat::kDense, DType::kBF16, DType::kBF16},
                                         Format{WeightFormat::kFp8Channel, DType::kE4M3, DType::kBF16},
                                         Format{WeightFormat::kFp8Block, DType::kE4M3, DType::kBF16},
                                         Format{WeightFormat::kFp8Block, DType::kE4M3, DType::kF32}),
                         [](const auto& info) {
                           const WeightFormat format = info.param.format;
                           return concat(format == WeightFormat::kDense        ? "dense_"
                                         : format == WeightFormat::kFp8Channel ? "channel_"
                                                                               : "block_",
                                         name_of(info.param.dtype), "_to_", name_of(info.param.out));
                         });

TEST(GroupedLinearContract, RefusesWhatItCannotDo) {
  Runner runner(1);
  Random random(1);
  const TestWeight weight(runner.backend(), random, WeightFormat::kFp8Block, DType::kE4M3, 2, 16, 200);
  const TestInput x(random, WeightFormat::kFp8Block, DType::kE4M3, 4, 200);
  const TestInput per_row(random, WeightFormat::kFp8Channel, DType::kE4M3, 4, 200);
  TestMatrix y(DType::kF32, 4, 16);
  const TestArray<std::int32_t> offsets({0, 2, 4});
  const GroupedLinearParams good{
      .x = x.view(), .weight = weight.packed(), .offsets = offsets.get(), .y = y.view(), .rows_capacity = 4};
  const auto refusal = [&](auto&& change) {
    GroupedLinearParams params = good;
    change(params);
    return runner.refusal([&](OpContext& context) { grouped_linear(context, params); });
  };
  EXPECT_EQ(refusal([](GroupedLinearParams&) {}), "");
  EXPECT_EQ(
      refusal([&](GroupedLinearParams& p) { p.x = per_row.view(); }),
      "[grouped_linear] got x as codes with one scale per row, want codes with one scale per row and 128 columns. "
      "Quantise it that way.");
  EXPECT_EQ(refusal([](GroupedLinearParams& p) { p.offsets = nullptr; }),
            "[grouped_linear] got no offsets, want an array. Pass its address.");
  EXPECT_NE(refusal([](GroupedLinearParams& p) { p.weight = nullptr; }), "");
  EXPECT_NE(refusal([](GroupedLinearParams& p) { p.rows_capacity = 5; }), "");
  EXPECT_NE(refusal([](GroupedLinearParams& p) { p.x.scale_stride = 3; }), "");
  EXPECT_NE(refusal([](GroupedLinearParams& p) { p.alignment = 0; }), "");
  EXPECT_EQ(refusal([](GroupedLinearParams& p) { p.alignment = 3; }),
            "[grouped_linear] got rows_capacity = 4, want a multiple of 3, the alignment. Take it from "
            "sorted_capacity().");
  EXPECT_NE(refusal([](GroupedLinearParams& p) { p.y.cols = 8; }), "");
  EXPECT_NE(refusal([](GroupedLinearParams& p) { p.y.dtype = DType::kE4M3; }), "");
}

}  // namespace
}  // namespace onerec
