// quantize_context: codes equal to the formulas of docs/numerics.md to the bit, each where it belongs.
#include "ops/context_codes.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "support/context_codes.h"
#include "support/offsets.h"
#include "support/runner.h"

namespace onerec::test {
namespace {

using Counts = std::vector<std::int64_t>;

// What every model has that can be opened this way.
#define ONEREC_NEEDS_CONTEXT_CODES(runner) \
  if (!attends_to_codes(runner, 4, 1, 64)) GTEST_SKIP() << "this backend has no codes of a context"

struct Problem {
  TestMatrix k, v;
  TestArray<std::int32_t> offsets;
  TestContextCodes codes;
  bool shared;

  // `spare` tokens of capacity behind the live ones.
  Problem(Random& random, DType dtype, const Counts& tokens, std::int64_t width, bool shared_, std::int64_t spare)
      : k(random_matrix(random, dtype, total_of(tokens) + spare, width, 1.0f, 8)),
        v(random_matrix(random, dtype, total_of(tokens) + spare, width, 1.0f, 24)),
        offsets(offsets_of(tokens)),
        codes(total_of(tokens) + spare, static_cast<std::int64_t>(tokens.size()), width),
        shared(shared_) {
    codes.key_scale = 0.0078f;
    codes.value_scale = shared_ ? 0.0078f : 0.0031f;  // the largest values saturate
  }

  const TestMatrix& values() const { return shared ? k : v; }
  std::int64_t batch() const { return offsets.size() - 1; }

  QuantizeContextParams params() const {
    return {.k = k.view(),
            .v = values().view(),
            .context_offsets = offsets.get(),
            .batch = batch(),
            .tokens_capacity = k.rows(),
            .codes = codes.view()};
  }
};

unsigned char code_at(const TestMatrix& codes, std::int64_t r, std::int64_t c) {
  return codes.data()[r * codes.stride() + c];
}

void check(const Problem& x) {
  const std::int64_t width = x.k.cols();
  const std::int64_t tokens = x.offsets[x.batch()];
  for (std::int64_t n = 0; n < x.codes.keys.rows(); ++n) {
    for (std::int64_t c = 0; c < x.codes.keys.stride(); ++c) {
      const bool live = n < tokens && c < width;
      const unsigned char want = live ? to_e4m3(x.k.get(n, c) * (1.0f / x.codes.key_scale)) : kPoison;
      ASSERT_EQ(code_at(x.codes.keys, n, c), want) << "key " << n << ", column " << c;
    }
  }
  // What each column of values holds: a token, nothing yet a place in a group, or what was there.
  constexpr std::int64_t kLeft = -2;
  constexpr std::int64_t kZero = -1;
  Counts holds(static_cast<std::size_t>(x.codes.values.stride()), kLeft);
  for (std::int64_t b = 0; b < x.batch(); ++b) {
    const std::int64_t first = x.offsets[b];
    const std::int64_t count = x.offsets[b + 1] - first;
    for (std::int64_t n = 0; n < whole_token_groups(count); ++n) {
      holds[static_cast<std::size_t>(value_column(value_begin(first, b), n))] = n < count ? first + n : kZero;
    }
  }
  for (std::int64_t c = 0; c < width; ++c) {
    for (std::int64_t column = 0; column < x.codes.values.stride(); ++column) {
      const std::int64_t token = holds[static_cast<std::size_t>(column)];
      unsigned char want = kPoison;
      if (token == kZero) want = 0;
      if (token >= 0) want = to_e4m3(x.values().get(token, c) * (1.0f / x.codes.value_scale));
      ASSERT_EQ(code_at(x.codes.values, c, column), want) << "value " << token << " in column " << column << ", " << c;
    }
  }
}

TEST(QuantizeContext, FollowsTheFormula) {
  Runner runner(3);
  ONEREC_NEEDS_CONTEXT_CODES(runner);
  Random random(21);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const bool shared : {true, false}) {
      for (const std::int64_t width : {16, 64, 72, 256}) {
        for (const Counts& tokens :
             {Counts{}, {0}, {1}, {32}, {33, 0, 31}, {5, 64, 1, 0}, {at_most_on_simt(700, 90), 17}}) {
          for (const std::int64_t spare : {0, 45}) {
            Problem x(random, dtype, tokens, width, shared, spare);
            runner.run([&](OpContext& context) { quantize_context(context, x.params()); },
                       {&x.codes.keys, &x.codes.values});
            check(x);
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

TEST(QuantizeContext, SaturatesAndKeepsNaN) {
  Runner runner(1);
  ONEREC_NEEDS_CONTEXT_CODES(runner);
  Random random(22);
  Problem x(random, DType::kF32, {3}, 16, true, 0);
  x.k.set(0, 0, 1e30f);
  x.k.set(1, 0, -INFINITY);
  x.k.set(2, 0, std::nanf(""));
  runner.run_once([&](OpContext& context) { quantize_context(context, x.params()); });
  EXPECT_EQ(code_at(x.codes.keys, 0, 0), 0x7e);
  EXPECT_EQ(code_at(x.codes.keys, 1, 0), 0xfe);
  EXPECT_EQ(code_at(x.codes.keys, 2, 0) & 0x7f, 0x7f);
  EXPECT_EQ(code_at(x.codes.values, 0, 0), 0x7e);
  EXPECT_EQ(code_at(x.codes.values, 0, 1), 0xfe);
  EXPECT_EQ(code_at(x.codes.values, 0, 4) & 0x7f, 0x7f);
}

TEST(QuantizeContext, RefusesWrongParameters) {
  Runner runner(1);
  ONEREC_NEEDS_CONTEXT_CODES(runner);
  Random random(23);
  const Problem x(random, DType::kBF16, {4, 9}, 64, false, 0);
  const auto refusal = [&](auto&& change) {
    QuantizeContextParams params = x.params();
    change(params);
    return runner.refusal([&](OpContext& context) { quantize_context(context, params); });
  };
  EXPECT_EQ(refusal([](auto&) {}), "");
  EXPECT_EQ(refusal([](auto& p) { p.codes.keys.stride = 72; }),
            "[quantize_context] got codes.keys with stride 72, want a multiple of 16. Pad the rows.");
  EXPECT_EQ(refusal([](auto& p) { p.codes.key_scale = 0.0f; }),
            "[quantize_context] got codes.key_scale = 0, want a positive number. Correct the scale.");
  EXPECT_EQ(refusal([](auto& p) { p.codes.value_scale = std::nanf(""); }),
            "[quantize_context] got codes.value_scale = nan, want a positive number. Correct the scale.");
  EXPECT_EQ(refusal([](auto& p) { p.batch = 3; }),
            "[quantize_context] got codes.values of 96 columns, want 128. Pass a matrix of that width.");
  EXPECT_NE(refusal([](auto& p) { p.codes.values.stride = 100; }), "");
  EXPECT_NE(refusal([](auto& p) { p.codes.values.rows = 63; }), "");
  EXPECT_NE(refusal([](auto& p) { p.codes.keys.dtype = DType::kU8; }), "");
  EXPECT_NE(refusal([](auto& p) { p.codes.keys.cols = 32; }), "");
  EXPECT_NE(refusal([](auto& p) { p.k.dtype = DType::kE4M3; }), "");
  EXPECT_NE(refusal([](auto& p) { p.v.dtype = DType::kF32; }), "");
  EXPECT_NE(refusal([](auto& p) { p.tokens_capacity = 14; }), "");
  EXPECT_NE(refusal([](auto& p) { p.context_offsets = nullptr; }), "");
}

TEST(QuantizeContext, RefusesCodesOverWhatItReads) {
  Runner runner(1);
  ONEREC_NEEDS_CONTEXT_CODES(runner);
  Random random(24);
  const Problem x(random, DType::kBF16, {4, 9}, 64, false, 0);
  const auto at = [](const ConstMatrix& m, std::int64_t r, std::int64_t c) {
    return static_cast<std::byte*>(const_cast<void*>(m.data)) +
           (r * m.stride + c) * static_cast<long>(size_of(m.dtype));
  };
  const auto expect_refusal = [&](auto&& change) {
    QuantizeContextParams params = x.params();
    change(params);
    OpContext context{.backend = runner.backend(), .stream = runner.stream()};
    EXPECT_THROW(quantize_context(context, params), ArgumentError);
  };
  // The last element of one matrix is the first of another.
  expect_refusal([&](auto& p) { p.codes.values.data = at(p.v, 12, 63); });
  expect_refusal([&](auto& p) { p.codes.values.data = at(p.k, 12, 63); });
  expect_refusal([&](auto& p) { p.codes.keys.data = at(p.codes.values, 63, 95); });
  expect_refusal([&](auto& p) { p.codes.keys.data = at(p.k, 12, 63); });
  expect_refusal([&](auto& p) { p.codes.keys.data = at(p.v, 12, 63); });
}

}  // namespace
}  // namespace onerec::test
