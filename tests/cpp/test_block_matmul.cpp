// The kernels of attention, for every set of instructions that this machine has, against float64.
#include "backends/cpu/block_matmul.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "support/tensors.h"

namespace onerec::test {
namespace {

using cpu::BlockKernels;
using cpu::kPanel;
using cpu::pad_columns;

TEST(BlockMatmul, MatchesFloat64) {
  ONEREC_CPU_ONLY();
  Random random(81);
  for (const BlockKernels* kernels : cpu::usable_block_kernels()) {
    for (int i = 0; i < 60; ++i) {
      const std::int64_t rows = uniform(random, 0, 29), cols = 16 * uniform(random, 1, 9),
                         inner = uniform(random, 0, 70);
      const TestMatrix a = random_matrix(random, DType::kF32, rows, inner, 1.0f, 3);
      const TestMatrix b = random_matrix(random, DType::kF32, inner, cols, 1.0f, 5);
      TestMatrix product(DType::kF32, rows, cols, 1), sum = random_matrix(random, DType::kF32, rows, cols, 1.0f, 1);
      TestMatrix before(DType::kF32, rows, cols, 1);
      before.restore(sum.snapshot());
      cpu::BlockMatmul m{.a = a.view().row<float>(0),
                         .a_stride = a.stride(),
                         .b = b.view().row<float>(0),
                         .b_stride = b.stride(),
                         .c = product.view().row<float>(0),
                         .c_stride = product.stride(),
                         .rows = rows,
                         .cols = cols,
                         .inner = inner};
      kernels->multiply(m, 0.5f);
      m.c = sum.view().row<float>(0);
      kernels->accumulate(m);
      ASSERT_TRUE(product.guards_intact() && sum.guards_intact());
      for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t c = 0; c < cols; ++c) {
          double want = 0;
          for (std::int64_t k = 0; k < inner; ++k) want += static_cast<double>(a.get(r, k)) * b.get(k, c);
          ASSERT_NEAR(product.get(r, c), 0.5 * want, 1e-5) << kernels->name;
          ASSERT_NEAR(sum.get(r, c), before.get(r, c) + want, 2e-5) << kernels->name;
        }
      }
    }
  }
}

TEST(BlockMatmul, TransposesIntoPanels) {
  ONEREC_CPU_ONLY();
  Random random(82);
  for (const BlockKernels* kernels : cpu::usable_block_kernels()) {
    for (const auto& [rows, cols] : {std::pair{1, 1}, {16, 16}, {30, 64}, {65, 48}, {200, 37}, {127, 128}}) {
      const TestMatrix x = random_matrix(random, DType::kF32, rows, cols, 1.0f, 2);
      TestArray<float> panels((rows + kPanel - 1) / kPanel * kPanel * cols);
      kernels->transpose(x.view().row<float>(0), x.stride(), rows, cols, panels.get());
      ASSERT_TRUE(panels.guards_intact());
      for (std::int64_t n = 0; n < pad_columns(rows); ++n) {
        for (std::int64_t d = 0; d < cols; ++d) {
          ASSERT_EQ(panels[n / kPanel * kPanel * cols + d * kPanel + n % kPanel], n < rows ? x.get(n, d) : 0.0f)
              << kernels->name << " " << n << "," << d;
        }
      }
    }
  }
}

TEST(BlockMatmul, SoftmaxMatchesFloat64) {
  ONEREC_CPU_ONLY();
  Random random(83);
  for (const BlockKernels* kernels : cpu::usable_block_kernels()) {
    for (const std::int64_t count : {1, 3, 15, 16, 17, 64, 500}) {
      for (const float deviation : {1e-6f, 1.0f, 60.0f}) {
        const TestArray<float> scores = random_floats(random, count, deviation);
        TestArray<float> plain(pad_columns(count)), rounded(pad_columns(count));
        std::copy(scores.begin(), scores.end(), plain.begin());
        std::copy(scores.begin(), scores.end(), rounded.begin());
        const float largest = *std::max_element(scores.begin(), scores.end());
        const float total = kernels->softmax_f32(plain.get(), count);
        EXPECT_EQ(total, kernels->softmax_bf16(rounded.get(), count)) << kernels->name;
        EXPECT_TRUE(plain.guards_intact() && rounded.guards_intact());
        double sum = 0;
        for (std::int64_t i = 0; i < count; ++i) {
          const double want = std::exp(static_cast<double>(scores[i] - largest));
          sum += want;
          ASSERT_NEAR(plain[i], want, 3e-7 * want + 1e-37) << kernels->name;
          ASSERT_EQ(rounded[i], to_float(to_bfloat16(plain[i]))) << kernels->name;
        }
        ASSERT_NEAR(total, sum, 1e-6 * sum) << kernels->name;
      }
    }
  }
}

TEST(BlockMatmul, SoftmaxOfNonFiniteScores) {
  ONEREC_CPU_ONLY();
  for (const BlockKernels* kernels : cpu::usable_block_kernels()) {
    for (const float bad : {std::nanf(""), INFINITY}) {
      for (const std::int64_t place : {0, 7, 18}) {
        TestArray<float> row(32);
        for (std::int64_t i = 0; i < 19; ++i) row[i] = 0.1f * static_cast<float>(i);
        row[place] = bad;
        EXPECT_TRUE(std::isnan(kernels->softmax_f32(row.get(), 19))) << kernels->name;
      }
    }
    TestArray<float> row(16);
    for (std::int64_t i = 0; i < 5; ++i) row[i] = i == 2 ? 3.0f : -INFINITY;
    EXPECT_EQ(kernels->softmax_f32(row.get(), 5), 1.0f) << kernels->name;
    EXPECT_EQ(row[1], 0.0f) << kernels->name;
  }
}

}  // namespace
}  // namespace onerec::test
