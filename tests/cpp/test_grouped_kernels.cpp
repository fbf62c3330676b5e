// Every tensor-core kernel of grouped products, also those that no size chooses, with more and with fewer tiles than
// blocks.
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "core/error.h"
#include "support/grouped.h"
#include "support/grouped_kernels.h"
#include "support/runner.h"

namespace onerec {
namespace {

using test::GroupedKernel;
using test::Random;
using test::Runner;
using test::SwigluProblem;
using test::TestArray;
using test::TestInput;
using test::TestMatrix;
using test::TestWeight;

constexpr int kBlockCounts[] = {1, 5, 100};
// Of a row, every so many outputs are compared with the oracle, others in the next row.
constexpr std::int64_t kCheckedStep = 17;

// Experts without rows, with an even and an odd number of token tiles, and with a partial one.
std::vector<std::int32_t> mixed_counts(std::int32_t tokens) { return {0, 2 * tokens, 3, 0, 5 * tokens - 1}; }

std::vector<std::int32_t> few_counts(std::int32_t tokens) { return {0, 2 * tokens, 3, 0, tokens - 1}; }

// `least_outputs`, or the next number of them that the kernel takes.
void check_linear(const GroupedKernel& kernel, std::int64_t inputs, std::int64_t least_outputs,
                  const std::vector<std::int32_t>& counts) {
  const std::int64_t multiple = kernel.output_multiple;
  const std::int64_t outputs = (least_outputs + multiple - 1) / multiple * multiple;
  const bool dense = kernel.format == WeightFormat::kDense;
  const DType dtype = dense ? DType::kBF16 : DType::kE4M3;
  const auto tokens = static_cast<std::int32_t>(kernel.tokens);
  const std::int64_t experts = static_cast<std::int64_t>(counts.size());
  const std::int64_t capacity = 9 * kernel.tokens;
  Runner runner;
  Random random(5);
  const TestWeight weight(runner.backend(), random, kernel.format, dtype, experts, outputs, inputs);
  const TestInput x(random, kernel.format, dtype, capacity, inputs, 16);
  const TestArray<std::int32_t> offsets(test::aligned_offsets(counts, tokens));
  std::vector<unsigned char> first;
  for (const int blocks : kBlockCounts) {
    SCOPED_TRACE(concat(kernel.name, " ", inputs, " -> ", outputs, " on ", blocks, " blocks"));
    TestMatrix y(DType::kBF16, capacity, outputs, 16);
    const std::vector<unsigned char> unwritten = y.row_bytes(0);
    const GroupedLinearParams params{.x = x.view(),
                                     .weight = weight.packed(),
                                     .offsets = offsets.get(),
                                     .y = y.view(),
                                     .rows_capacity = capacity,
                                     .alignment = tokens};
    runner.run(
        [&](OpContext& context) {
          if (!context.measuring) run_kernel(context.stream, params, kernel, blocks);
        },
        {&y});
    for (std::int64_t r = offsets[experts]; r < capacity; ++r) ASSERT_EQ(y.row_bytes(r), unwritten) << "row " << r;
    if (!first.empty()) {
      ASSERT_TRUE(y.snapshot() == first) << "the number of blocks shows";
      continue;
    }
    first = y.snapshot();
    for (std::int64_t expert = 0; expert < experts; ++expert) {
      const std::int64_t begin = offsets[expert];
      for (std::int64_t r = begin; r < begin + counts[static_cast<std::size_t>(expert)]; ++r) {
        for (std::int64_t n = r % kCheckedStep; n < outputs; n += kCheckedStep) {
          const test::Dot want = test::dot(x, r, weight, expert, n, inputs);
          test::expect_close(DType::kBF16, y.get(r, n), want.sum, want.slack, "y", r, n);
          if (testing::Test::HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(GroupedKernels, Products) {
  const std::vector<GroupedKernel> kernels = test::grouped_linear_kernels();
  if (kernels.empty()) GTEST_SKIP() << "this device has no tensor cores";
  for (const GroupedKernel& kernel : kernels) {
    const auto tokens = static_cast<std::int32_t>(kernel.tokens);
    check_linear(kernel, 272, 392, mixed_counts(tokens));
    check_linear(kernel, 128, 8, mixed_counts(tokens));
    check_linear(kernel, 1408, 264, mixed_counts(tokens));
    check_linear(kernel, 144, 640, {0, 0, 6 * tokens});
    check_linear(kernel, 128, 128, {0, 0});
    if (HasFailure()) return;
  }
}

TEST(GroupedKernels, SwigluCodes) {
  const std::vector<GroupedKernel> kernels = test::grouped_swiglu_kernels();
  if (kernels.empty()) GTEST_SKIP() << "this device has no tensor cores";
  for (const GroupedKernel& kernel : kernels) {
    const auto tokens = static_cast<std::int32_t>(kernel.tokens);
    struct Size {
      std::int64_t inputs;
      std::int64_t width;
      std::vector<std::int32_t> counts;
    };
    const Size sizes[] = {{272, 128, few_counts(tokens)},
                          {16, 384, mixed_counts(tokens)},
                          {1040, 128, {tokens + 1}},
                          {144, 128, {4 * tokens}},
                          {144, 256, {0, 0}}};
    for (const auto& [inputs, width, counts] : sizes) {
      std::vector<unsigned char> first;
      for (const int blocks : {1, 100}) {
        SCOPED_TRACE(concat(kernel.name, " ", inputs, " -> ", width, " on ", blocks, " blocks"));
        Runner runner;
        SwigluProblem problem(runner.backend(), {.counts = counts,
                                                 .capacity = 9 * kernel.tokens,
                                                 .inputs = inputs,
                                                 .width = width,
                                                 .alignment = tokens,
                                                 .padding = 16});
        const std::vector<unsigned char> unwritten = problem.gate_up.snapshot();
        runner.run(
            [&](OpContext& context) {
              if (!context.measuring) run_kernel(context.stream, problem.params(), kernel, blocks);
            },
            problem.outputs());
        EXPECT_EQ(problem.gate_up.snapshot(), unwritten) << "gate_up is not needed";
        std::vector<unsigned char> result = problem.hidden.codes.snapshot();
        const std::vector<unsigned char> scales = problem.hidden.scales.snapshot();
        result.insert(result.end(), scales.begin(), scales.end());
        if (first.empty()) {
          problem.check();
          first = result;
        } else {
          EXPECT_TRUE(result == first) << "the number of blocks shows";
        }
        if (HasFailure()) return;
      }
    }
  }
}

}  // namespace
}  // namespace onerec
