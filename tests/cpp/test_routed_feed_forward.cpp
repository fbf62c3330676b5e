// routed_feed_forward: whichever way it is done, the bits of its three parts, which have oracles of their own.
#include "ops/routed_feed_forward.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "ops/backend.h"
#include "support/grouped.h"
#include "support/grouped_kernels.h"
#include "support/runner.h"

namespace onerec {
namespace {

using test::GroupedKernel;
using test::Random;
using test::Runner;
using test::TestArray;
using test::TestDevice;
using test::TestMatrix;
using test::TestOperand;
using test::TestWeight;

constexpr std::int64_t kRows = 40;  // that are routed

struct Sizes {
  std::vector<std::int32_t> counts;  // of the experts' rows
  std::int64_t capacity;
  std::int64_t inputs;
  std::int64_t width;
  std::int64_t outputs;
  std::int32_t alignment = 1;
  std::int64_t padding = 0;
};

std::vector<std::int32_t> random_sources(Random& random, const Sizes& sizes, const std::vector<std::int32_t>& offsets) {
  std::vector<std::int32_t> sources(static_cast<std::size_t>(sizes.capacity), -1);
  for (std::size_t e = 0; e < sizes.counts.size(); ++e) {
    for (std::int32_t i = 0; i < sizes.counts[e]; ++i) {
      sources[static_cast<std::size_t>(offsets[e] + i)] =
          static_cast<std::int32_t>(test::uniform(random, 0, kRows - 1));
    }
  }
  return sources;
}

class Problem {
 public:
  Problem(Backend& backend, const Sizes& sizes)
      : sizes_(sizes),
        random_(19),
        experts_(static_cast<std::int64_t>(sizes.counts.size())),
        gate_up_weight_(backend, random_, WeightFormat::kFp8Block, DType::kE4M3, experts_, 2 * sizes.width,
                        sizes.inputs),
        down_weight_(backend, random_, WeightFormat::kFp8Block, DType::kE4M3, experts_, sizes.outputs, sizes.width),
        x_(ScaleKind::kPerBlock, kRows, sizes.inputs, sizes.padding, sizes.padding),
        starts_(test::aligned_offsets(sizes.counts, sizes.alignment)),
        offsets_(starts_),
        sources_(random_sources(random_, sizes, starts_)),
        sorted_(ScaleKind::kPerBlock, sizes.capacity, sizes.inputs, sizes.padding, sizes.padding),
        gate_up_(DType::kBF16, sizes.capacity, 2 * sizes.width, sizes.padding),
        hidden_(ScaleKind::kPerBlock, sizes.capacity, sizes.width, sizes.padding, sizes.padding),
        y_(DType::kBF16, sizes.capacity, sizes.outputs, sizes.padding) {
    x_.fill_random(random_);
  }

  RoutedFeedForwardParams params() const {
    return {.gather = {.x = x_.view(),
                       .sources = sources_.get(),
                       .sorted = sorted_.view(),
                       .sorted_rows = {sizes_.capacity, offsets_.get() + experts_}},
            .first = {.x = sorted_.view(),
                      .weight = gate_up_weight_.packed(),
                      .offsets = offsets_.get(),
                      .width = sizes_.width,
                      .gate_up = gate_up_.view(),
                      .quantized = hidden_.view(),
                      .rows_capacity = sizes_.capacity,
                      .alignment = sizes_.alignment},
            .second = {.x = hidden_.view(),
                       .weight = down_weight_.packed(),
                       .offsets = offsets_.get(),
                       .y = y_.view(),
                       .rows_capacity = sizes_.capacity,
                       .alignment = sizes_.alignment}};
  }

  std::vector<test::GuardedBuffer*> outputs() {
    return {&sorted_.codes, &sorted_.scales, &gate_up_, &hidden_.codes, &hidden_.scales, &y_};
  }

  // y of the experts' rows, padding left out.
  std::vector<std::vector<unsigned char>> results() const {
    std::vector<std::vector<unsigned char>> rows;
    for (std::size_t e = 0; e < sizes_.counts.size(); ++e) {
      for (std::int64_t r = starts_[e]; r < starts_[e] + sizes_.counts[e]; ++r) rows.push_back(y_.row_bytes(r));
    }
    return rows;
  }

  // Nothing was written behind the experts' rows.
  void expect_rest_untouched(const std::vector<unsigned char>& unwritten) const {
    for (std::int64_t r = starts_.back(); r < sizes_.capacity; ++r) {
      ASSERT_EQ(y_.row_bytes(r), unwritten) << "row " << r;
    }
  }

  std::vector<unsigned char> row(std::int64_t r) const { return y_.row_bytes(r); }
  float y(std::int64_t r, std::int64_t n) const { return y_.get(r, n); }
  TestOperand& x() { return x_; }
  const TestArray<std::int32_t>& sources() const { return sources_; }

 private:
  Sizes sizes_;
  Random random_;
  std::int64_t experts_;
  TestWeight gate_up_weight_;
  TestWeight down_weight_;
  TestOperand x_;
  std::vector<std::int32_t> starts_;
  TestArray<std::int32_t> offsets_;
  TestArray<std::int32_t> sources_;
  TestOperand sorted_;
  TestMatrix gate_up_;
  TestOperand hidden_;
  TestMatrix y_;
};

std::vector<std::vector<unsigned char>> results_of_parts(const Sizes& sizes) {
  Runner runner;
  Problem problem(runner.backend(), sizes);
  runner.run_once([&](OpContext& context) {
    const RoutedFeedForwardParams params = problem.params();
    gather_rows(context, params.gather);
    grouped_swiglu(context, params.first);
    grouped_linear(context, params.second);
  });
  return problem.results();
}

std::string name_of(const Sizes& sizes) {
  return concat(sizes.inputs, " -> ", sizes.width, " -> ", sizes.outputs, " of ", sizes.counts.size(),
                " experts, capacity ", sizes.capacity, ", alignment ", sizes.alignment);
}

void check(const Sizes& sizes) {
  SCOPED_TRACE(name_of(sizes));
  Runner runner;
  Problem problem(runner.backend(), sizes);
  const std::vector<unsigned char> unwritten = sizes.capacity > 0 ? problem.row(0) : std::vector<unsigned char>{};
  runner.run([&](OpContext& context) { routed_feed_forward(context, problem.params()); }, problem.outputs());
  EXPECT_TRUE(problem.results() == results_of_parts(sizes));
  problem.expect_rest_untouched(unwritten);
}

TEST(RoutedFeedForward, AnySplitOfTheRows) {
  check({.counts = {0, 0, 0}, .capacity = 8, .inputs = 24, .width = 20, .outputs = 16});
  check({.counts = {1}, .capacity = 1, .inputs = 24, .width = 20, .outputs = 7});
  check({.counts = {0, 5, 0, 1, 11, 0, 3}, .capacity = 30, .inputs = 24, .width = 150, .outputs = 131, .padding = 5});
  check({.counts = {0, 0}, .capacity = 0, .inputs = 16, .width = 128, .outputs = 16});
}

// Whole tiles of rows: what tensor cores take.
TEST(RoutedFeedForward, AlignedExperts) {
  for (const std::int32_t alignment : {16, 32, 64, 128}) {
    check({.counts = {0, 5, alignment + 1, 0, 2},
           .capacity = 6 * alignment,
           .inputs = 272,
           .width = 256,
           .outputs = 328,
           .alignment = alignment,
           .padding = 16});
    if (test::test_device() == TestDevice::kSimt) break;  // it has one kernel, and is slow
    check(
        {.counts = {0, 0}, .capacity = alignment, .inputs = 128, .width = 128, .outputs = 128, .alignment = alignment});
    check({.counts = {alignment, 3},
           .capacity = 2 * alignment,
           .inputs = 1408,
           .width = 1408,
           .outputs = 1408,
           .alignment = alignment});
    check({.counts = {3 * alignment},
           .capacity = 4 * alignment,
           .inputs = 16,
           .width = 128,
           .outputs = 8,
           .alignment = alignment});
    if (test::test_device() == TestDevice::kCpu) break;  // it does not look at the alignment
  }
}

// More tiles than the device has blocks, so that some blocks have both products' tiles and wait for other blocks'.
TEST(RoutedFeedForward, ManyExperts) {
  if (test::test_device() == TestDevice::kSimt) GTEST_SKIP() << "a GPU's test; too slow to emulate";
  check({.counts = std::vector<std::int32_t>(40, 3),
         .capacity = 41 * 16,
         .inputs = 128,
         .width = 640,
         .outputs = 640,
         .alignment = 16});
}

TEST(RoutedFeedForward, EveryKernelOnAnyNumberOfBlocks) {
  const std::vector<GroupedKernel> kernels = test::network_kernels();
  if (kernels.empty()) GTEST_SKIP() << "this device has no tensor cores";
  for (const GroupedKernel& kernel : kernels) {
    const auto tokens = static_cast<std::int32_t>(kernel.tokens);
    const Sizes all[] = {{.counts = {0, 2 * tokens, 3, 0, 5 * tokens - 1},
                          .capacity = 9 * kernel.tokens,
                          .inputs = 1040,
                          .width = 896,
                          .outputs = 392,
                          .alignment = tokens,
                          .padding = 16},
                         {.counts = {tokens},
                          .capacity = kernel.tokens,
                          .inputs = 16,
                          .width = 128,
                          .outputs = 1408,
                          .alignment = tokens}};
    for (const Sizes& sizes : all) {
      const auto want = results_of_parts(sizes);
      for (const int blocks : {1, 2, 5, 100}) {
        SCOPED_TRACE(concat(kernel.name, " on ", blocks, " blocks, ", name_of(sizes)));
        Runner runner;
        Problem problem(runner.backend(), sizes);
        runner.run(
            [&](OpContext& context) {
              context.need_workspace(context.backend.routed_feed_forward_workspace(problem.params()));
              if (context.measuring) return;
              run_kernel(context.stream, problem.params(), kernel, blocks, context.workspace);
            },
            problem.outputs());
        ASSERT_TRUE(problem.results() == want);
      }
    }
  }
}

TEST(RoutedFeedForward, TensorCoresDoAllOfItAtOnce) {
  Runner runner;
  const auto fuses = [&](const Sizes& sizes) {
    const Problem problem(runner.backend(), sizes);
    return runner.backend().fuses_routed_feed_forward(problem.params());
  };
  const bool can = test::test_device() == TestDevice::kCuda;
  const Sizes good{.counts = {3}, .capacity = 64, .inputs = 128, .width = 128, .outputs = 128, .alignment = 64};
  EXPECT_EQ(fuses(good), can);
  for (const auto change :
       {+[](Sizes& s) { s.alignment = 128, s.capacity = 128; }, +[](Sizes& s) { s.alignment = 8; },
        +[](Sizes& s) { s.width = 136; }, +[](Sizes& s) { s.outputs = 132; }, +[](Sizes& s) { s.inputs = 120; }}) {
    Sizes sizes = good;
    change(sizes);
    EXPECT_FALSE(fuses(sizes)) << name_of(sizes);
  }
}

// A NaN in a row makes the results of that row NaN, and no other's.
TEST(RoutedFeedForward, NansStayInTheirRow) {
  constexpr std::int32_t kNanRow = 5;
  constexpr std::int64_t kOutputs = 128;
  Runner runner;
  Problem problem(
      runner.backend(),
      {.counts = {16, 30}, .capacity = 64, .inputs = 128, .width = 128, .outputs = kOutputs, .alignment = 32});
  problem.x().scales[kNanRow] = std::nanf("");
  runner.run([&](OpContext& context) { routed_feed_forward(context, problem.params()); }, problem.outputs());
  int nans = 0;
  for (std::int64_t r = 0; r < 64; ++r) {
    if (problem.sources()[r] < 0) continue;
    nans += problem.sources()[r] == kNanRow ? 1 : 0;
    for (std::int64_t n = 0; n < kOutputs; ++n) {
      ASSERT_EQ(std::isnan(problem.y(r, n)), problem.sources()[r] == kNanRow) << "row " << r << " column " << n;
    }
  }
  EXPECT_GT(nans, 0);
}

// Whether or not the backend has a kernel for it, a tap sees what both products multiply.
TEST(RoutedFeedForward, ShowsItsInputs) {
  class Tap final : public OperandTap {
   public:
    void observe(std::string_view, const Operand& operand, std::int64_t rows) override {
      seen.push_back(concat(rows, " x ", operand.values.cols));
    }
    std::vector<std::string> seen;
  };
  Runner runner;
  Problem problem(runner.backend(),
                  {.counts = {3}, .capacity = 32, .inputs = 256, .width = 128, .outputs = 128, .alignment = 16});
  Tap tap;
  runner.run_once([&](OpContext& context) {
    context.tap = &tap;
    routed_feed_forward(context, problem.params());
  });
  EXPECT_EQ(tap.seen, (std::vector<std::string>{"16 x 256", "16 x 128"}));
}

TEST(RoutedFeedForward, RefusesPartsThatDoNotBelongTogether) {
  Runner runner(1);
  const Problem problem(runner.backend(), {.counts = {2, 2}, .capacity = 4, .inputs = 24, .width = 16, .outputs = 16});
  const Problem other(runner.backend(), {.counts = {4}, .capacity = 4, .inputs = 24, .width = 16, .outputs = 16});
  const auto refusal = [&](auto&& change) {
    RoutedFeedForwardParams params = problem.params();
    change(params);
    return runner.refusal([&](OpContext& context) { routed_feed_forward(context, params); });
  };
  using Params = RoutedFeedForwardParams;
  EXPECT_EQ(refusal([](Params&) {}), "");
  const std::string unread =
      "[routed_feed_forward] got a part that does not read what the part before it writes, want it to. Pass the same "
      "operands.";
  EXPECT_EQ(refusal([&](Params& p) { p.first.x = other.params().first.x; }), unread);
  EXPECT_EQ(refusal([&](Params& p) { p.second.x = other.params().second.x; }), unread);
  EXPECT_EQ(refusal([&](Params& p) { p.gather.sorted.scales = nullptr; }), unread);
  EXPECT_EQ(refusal([&](Params& p) { p.second.weight = other.params().second.weight; }),
            "[routed_feed_forward] got weights of 2 and 1 experts, want as many. Pass the weights of one layer.");
  const std::string rows =
      "[routed_feed_forward] got parts of different rows, want the same. Pass the offsets, the capacity and the "
      "alignment of one route().";
  EXPECT_EQ(refusal([&](Params& p) { p.second.offsets = other.params().second.offsets; }), rows);
  EXPECT_EQ(refusal([&](Params& p) { p.first.rows_capacity = 2; }), rows);
  EXPECT_EQ(refusal([&](Params& p) { p.second.alignment = 2; }), rows);
  EXPECT_EQ(refusal([&](Params& p) { p.gather.sorted_rows.capacity = 2; }), rows);
  EXPECT_EQ(refusal([&](Params& p) { p.gather.sorted_rows.count = nullptr; }), rows);
  EXPECT_NE(refusal([](Params& p) { p.first.alignment = p.second.alignment = 0; }), "");
  // What a part finds.
  EXPECT_EQ(refusal([&](Params& p) { p.gather.sources = nullptr; }).substr(0, 13), "[gather_rows]");
  EXPECT_EQ(refusal([&](Params& p) { p.first.gate_up.cols = 16; }).substr(0, 16), "[grouped_swiglu]");
  EXPECT_EQ(refusal([&](Params& p) { p.second.y.cols = 8; }).substr(0, 16), "[grouped_linear]");
  EXPECT_EQ(refusal([](Params& p) { p.first.weight = nullptr; }).substr(0, 21), "[routed_feed_forward]");
  EXPECT_EQ(refusal([](Params& p) { p.second.weight = nullptr; }).substr(0, 21), "[routed_feed_forward]");
}

}  // namespace
}  // namespace onerec
