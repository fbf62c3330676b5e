// Cross-attention of BF16 with contexts in splits, above all in two, whose sums two blocks of a GPU may add up among
// themselves; and codes of the output, by each row's largest value or by a scale known beforehand. Against float64.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/quantize.h"
#include "support/aligned_attention.h"

namespace onerec::test {
namespace {

using Shape = AttentionShape;
using Problem = AttentionProblem;

// So many requests times heads times tiles of rows are cut into two splits on 132 multiprocessors. Other devices have
// no use for as many.
constexpr std::int64_t kPairs = 50;

std::int64_t pairs() { return test_device() == TestDevice::kCuda ? kPairs : 4; }

std::vector<Shape> two_splits(std::int64_t head_dim, bool shared) {
  const bool gpu = test_device() == TestDevice::kCuda;
  const std::int64_t heads = at_most_on_simt(5, 1);
  const auto rows = [](std::int64_t count) { return at_most_on_simt(count, 9); };
  const auto tokens = [](std::int64_t count) { return at_most_on_simt(count, 150); };
  std::vector<Shape> list = {
      // One of two warpgroups has rows; the other one as well; with rows and tokens of other requests behind.
      {{3}, {tokens(700)}, pairs(), pairs(), head_dim, shared},
      {{rows(66)}, {tokens(640)}, pairs(), pairs(), head_dim, shared, 1, 60},
      // Splits and tiles of rows without anything to do.
      {{rows(130), rows(64), rows(65), 0, 1}, {tokens(700), 0, 1, 300, 513}, heads, heads, head_dim, shared, 2, 7},
      {{rows(12), 4, 2, 1, 2}, {1, 128, 129, tokens(257), 0}, 2 * heads, 2 * heads, head_dim, shared, 0, 400},
      // Groups.
      {{rows(40), rows(10), rows(18), 3, 0, rows(9), rows(20), 1},
       {tokens(600), 129, 128, 0, 1, tokens(257), tokens(640), 5},
       14,
       2,
       head_dim,
       shared}};
  // The largest context of a service.
  Shape large{{gpu ? 512 : rows(20)}, {gpu ? 3000 : tokens(700)}, heads, heads, head_dim, shared};
  if (gpu) large.heads = large.kv_heads = 14;
  large.every = 5;
  list.push_back(large);
  if (!gpu) {
    for (Shape& shape : list) shape.every = 5;
  }
  return list;
}

template <class F>
void for_two_splits(const F& f) {
  for (const std::int64_t head_dim : attention_head_dims()) {
    for (const bool shared : {true, false}) {
      for (const Shape& shape : two_splits(head_dim, shared)) f(shape);
    }
  }
}

TEST(CrossAttentionSplits, Two) {
  Random random(1);
  for_two_splits([&](const Shape& shape) { check_attention_shape(shape, random); });
}

TEST(CrossAttentionSplits, Many) {
  Random random(3);
  for (const std::int64_t head_dim : attention_head_dims()) {
    for (const bool shared : {true, false}) {
      check_attention_shape({{3}, {1500}, 2, 2, head_dim, shared, 2, 7}, random);
      check_attention_shape({{3, 5, 0, 2}, {20, 700, 30, 0}, 2, 1, head_dim, shared, 0, 300}, random);
    }
  }
}

// Two blocks that have a split each send their sums to each other, and nothing to memory.
TEST(CrossAttentionSplits, TwoNeedNoWorkspaceOnAGpu) {
  if (test_device() != TestDevice::kCuda) GTEST_SKIP() << "about the kernels of a GPU";
  Random random(2);
  Runner runner;
  const auto workspace = [&](std::int64_t heads) {
    const Problem x({{3}, {700}, heads, heads, 64}, random);
    return runner.measure([&](OpContext& context) { cross_attention(context, x.params()); });
  };
  EXPECT_EQ(workspace(kPairs), 0U);
  EXPECT_GT(workspace(3), 0U);
}

// One split has all of the weight, or both have some, beside bases far from each other.
TEST(CrossAttentionSplits, TwoFollowTheLargestScore) {
  Random random(4);
  const std::int64_t heads = pairs();
  const std::int64_t tokens = at_most_on_simt(700, 150);
  for (const std::int64_t head_dim : attention_head_dims()) {
    for (const float slope : {0.005f, 0.05f, -0.05f, 2.0f, -2.0f}) {
      Shape shape{{70}, {tokens}, heads, heads, head_dim, false};
      shape.every = 9;
      Problem x(shape, random);
      for (std::int64_t h = 0; h < heads; ++h) {
        for (std::int64_t r = 0; r < 70; ++r) x.q.set(r, h * head_dim, 8.0f);
        for (std::int64_t n = 0; n < tokens; ++n) x.k.set(n, h * head_dim, slope * static_cast<float>(n));
      }
      x.run();
      check_attention(x);
    }
  }
}

// --- codes ---

// Of x.out, by each row's largest value.
TestOperand codes_of(Runner& runner, const Problem& x, std::int64_t padding) {
  TestOperand codes(ScaleKind::kPerRow, x.out.rows(), x.out.cols(), padding);
  const Extent rows{x.out.rows(), x.row_offsets.get() + x.shape.rows.size()};
  const QuantizeParams params{.x = x.out.view(), .quantized = codes.view(), .rows = rows};
  runner.run_once([&](OpContext& context) { quantize(context, params); });
  return codes;
}

// Of x.out, by a power of two.
TestOperand codes_of(const Problem& x, float scale, std::int64_t padding) {
  TestOperand codes(ScaleKind::kPerRow, x.out.rows(), x.out.cols(), padding);
  for (std::int64_t r = 0; r < x.row_offsets[x.row_offsets.size() - 1]; ++r) {
    codes.scales[r] = scale;
    for (std::int64_t c = 0; c < x.out.cols(); ++c) codes.codes.set(r, c, x.out.get(r, c) / scale);
  }
  return codes;
}

// Any NaN code is as good as another.
void expect_codes(const TestOperand& got, const TestOperand& want, const Problem& x) {
  EXPECT_TRUE(got.scales.snapshot() == want.scales.snapshot());
  for (std::int64_t r = 0; r < want.codes.rows(); ++r) {
    for (std::int64_t c = 0; c < want.codes.stride(); ++c) {  // the padding stays poisoned
      const std::int64_t i = r * want.codes.stride() + c;
      const int wanted = want.codes.data()[i];
      const int code = got.codes.data()[i];
      const bool both_nan = wanted % 128 == 127 && code % 128 == 127 && c < want.codes.cols();
      ASSERT_TRUE(code == wanted || both_nan)
          << "code " << code << ", want " << wanted << " at (" << r << ", " << c << "), heads of " << x.shape.head_dim;
    }
  }
}

// `x` has its output. A static scale of 0 is none.
void check_codes(Runner& runner, const Problem& x, float static_scale, std::int64_t padding) {
  TestOperand got(ScaleKind::kPerRow, x.out.rows(), x.out.cols(), padding);
  TestMatrix scratch(DType::kBF16, x.out.rows(), x.out.cols(), 8);
  CrossAttentionParams params = x.params();
  params.out = scratch.view();
  params.quantized = got.view();
  params.quantized.static_scale = static_scale;
  const bool taken = static_scale > 0.0f && runner.backend().fuses_cross_attention_codes(params);
  if (static_scale > 0.0f && test_device() == TestDevice::kCuda) {
    EXPECT_EQ(taken, padding % 8 == 0 || params.max_request_rows == 1) << "heads of " << x.shape.head_dim;
  }
  runner.run([&](OpContext& context) { cross_attention(context, params); }, {&got.codes, &got.scales, &scratch});
  expect_codes(got, taken ? codes_of(x, static_scale, padding) : codes_of(runner, x, padding), x);
}

// No value is beyond 448 * kScale.
constexpr float kScale = 0x1p-6f;

// The emulation takes none, and is slow.
std::vector<float> static_scales() {
  if (test_device() == TestDevice::kSimt) return {kScale};
  return {0.0f, kScale, 8 * kScale};
}

// Where splits are added up the codes are made on the way, as are all by a static scale, elsewhere behind it.
TEST(CrossAttentionSplits, CodesAreThoseOfTheRoundedOutput) {
  Random random(9);
  Runner runner;
  for (const std::int64_t head_dim : attention_head_dims()) {
    const std::int64_t long_context = at_most_on_simt(1500, 200);
    for (const Shape& shape : {Shape{{3}, {long_context}, 2, 2, head_dim, true, 2, 7},
                               Shape{{3, 5, 0, 2}, {20, long_context, 30, 0}, 6, 2, head_dim, true},
                               Shape{{70}, {100}, 2, 1, head_dim, false, 1, 0},
                               Shape{{at_most_on_simt(200, 20), 2}, {70, 400}, 3, 3, head_dim, true, 3, 0},
                               Shape{{20, 3, 0, 7}, {0, 30, 5, 140}, 14, 2, head_dim, true},
                               Shape{{1, 0, 1}, {long_context, 5, 0}, 3, 3, head_dim, true}}) {
      Problem x(shape, random);
      x.run();
      check_attention(x);
      for (const float static_scale : static_scales()) {
        // Rows of codes that start at multiples of 8 bytes, and anywhere.
        for (const std::int64_t padding : {8, 3}) check_codes(runner, x, static_scale, padding);
      }
    }
  }
}

TEST(CrossAttentionSplits, CodesOfTwo) {
  Random random(10);
  Runner runner;
  for_two_splits([&](const Shape& shape) {
    Problem x(shape, random);
    x.run();
    for (const float static_scale : static_scales()) check_codes(runner, x, static_scale, 16);
  });
}

// A NaN of one request's values is in its codes, and in no others.
TEST(CrossAttentionSplits, CodesKeepNonFiniteValuesInTheirRequest) {
  Random random(11);
  Runner runner;
  for (const std::int64_t head_dim : attention_head_dims()) {
    for (const std::int64_t tokens : {std::int64_t{100}, at_most_on_simt(700, 150)}) {  // in one split, in two
      const std::int64_t heads = pairs() / 2;
      for (const std::int64_t at : {std::int64_t{3}, tokens - 2}) {
        for (const float bad : {std::nanf(""), INFINITY}) {
          Problem x({{5, 6}, {tokens, tokens - 30}, heads, heads, head_dim, false}, random);
          x.v.set(at, head_dim + 5, bad);
          x.run();
          for (std::int64_t r = 0; r < 11; ++r) {
            for (std::int64_t c = 0; c < heads * head_dim; ++c) {
              ASSERT_EQ(std::isfinite(x.out.get(r, c)), r >= 5 || c != head_dim + 5) << r << ", " << c;
            }
          }
          check_codes(runner, x, kScale, 8);
        }
      }
    }
  }
}

}  // namespace
}  // namespace onerec::test
