// Embeddings of context tokens and of decoder steps.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <tuple>

#include "ops/embed_context.h"
#include "ops/embed_step.h"
#include "support/runner.h"
#include "support/tensors.h"

namespace onerec::test {
namespace {

using Kind = ContextField::Kind;

float rounded(DType dtype, float value) { return dtype == DType::kF32 ? value : to_float(to_bfloat16(value)); }

EmbeddingTable table_of(const TestMatrix& m) { return {m.data(), m.rows(), m.cols()}; }

TestArray<std::int32_t> random_ids(Random& random, std::int64_t count, std::int64_t below) {
  TestArray<std::int32_t> ids(count);
  for (std::int32_t& id : ids) id = static_cast<std::int32_t>(uniform(random, 0, below - 1));
  return ids;
}

void expect_poison(const TestMatrix& m, std::int64_t first_row) {
  for (std::int64_t r = first_row; r < m.rows(); ++r) {
    for (const unsigned char byte : m.row_bytes(r)) ASSERT_EQ(byte, kPoison) << "row " << r;
  }
}

// Widths of the fields' kinds, and the columns behind them.
struct Widths {
  std::int64_t code, category, dense, padding;
};

// Nowhere at multiples of 16 bytes, and in some places.
constexpr Widths kRagged = {6, 3, 2, 3}, kAligned = {16, 8, 4, 8};

struct ContextProblem {
  static constexpr std::int64_t kLevels = 3, kCategories = 2, kDense = 7;
  Widths width;
  TestMatrix codes_table, category_table;
  TestArray<std::int32_t> codes, categorical, live;
  TestArray<float> dense;
  TestMatrix out;

  ContextProblem(Random& random, DType dtype, const Widths& widths, std::int64_t tokens, std::int64_t live_tokens)
      : width(widths),
        codes_table(random_matrix(random, dtype, 11, width.code)),
        category_table(random_matrix(random, dtype, 4, width.category)),
        codes(random_ids(random, tokens * kLevels, 11)),
        categorical(random_ids(random, tokens * kCategories, 4)),
        live({static_cast<std::int32_t>(live_tokens)}),
        dense(random_floats(random, tokens * kDense)),
        out(dtype, tokens, 2 * width.code + width.category + width.dense + width.padding,
            width.padding % 8 == 0 ? 8 : 1) {}

  EmbedContextParams params() const {
    return {.fields = {{Kind::kSemanticId, 2, width.code, table_of(codes_table)},
                       {Kind::kCategorical, 1, width.category, table_of(category_table)},
                       {Kind::kDense, 3, width.dense, {}},
                       {Kind::kSemanticId, 0, width.code, table_of(codes_table)}},
            .codes = codes.get(),
            .levels = kLevels,
            .categorical = categorical.get(),
            .num_categorical = kCategories,
            .dense = dense.get(),
            .num_dense = kDense,
            .out = out.view(),
            .tokens = {out.rows(), live.get()}};
  }

  float want(std::int64_t token, std::int64_t c) const {
    if (c < width.code) return codes_table.get(codes[token * kLevels + 2], c);
    c -= width.code;
    if (c < width.category) return category_table.get(categorical[token * kCategories + 1], c);
    c -= width.category;
    if (c < width.dense) return rounded(out.dtype(), dense[token * kDense + 3 + c]);
    c -= width.dense;
    return c < width.code ? codes_table.get(codes[token * kLevels], c) : 0.0f;
  }
};

TEST(EmbedContext, LaysTheFieldsSideBySide) {
  Random random(31);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const Widths& widths : {kRagged, kAligned}) {
      for (const auto& [tokens, live] : {std::pair{0, 0}, {1, 1}, {7, 0}, {37, 31}, {3000, 2999}}) {
        ContextProblem x(random, dtype, widths, tokens, live);
        Runner runner(2);
        runner.run([p = x.params()](OpContext& context) { embed_context(context, p); }, {&x.out});
        for (std::int64_t token = 0; token < live; ++token) {
          for (std::int64_t c = 0; c < x.out.cols(); ++c)
            ASSERT_EQ(x.out.get(token, c), x.want(token, c)) << token << "," << c;
        }
        expect_poison(x.out, live);
      }
    }
  }
}

TEST(EmbedContext, TakesManyFields) {
  Random random(36);
  constexpr std::int64_t kTokens = 5, kFields = 150, kWidth = 9;
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const TestMatrix table = random_matrix(random, dtype, 6, kWidth);
    const TestArray<std::int32_t> categorical = random_ids(random, kTokens * kFields, 6);
    TestMatrix out(dtype, kTokens, kFields * kWidth + 10, 8);
    EmbedContextParams params{
        .categorical = categorical.get(), .num_categorical = kFields, .out = out.view(), .tokens = {kTokens, nullptr}};
    for (std::int64_t i = 0; i < kFields; ++i) {
      params.fields.push_back({Kind::kCategorical, i, kWidth, table_of(table)});
    }
    Runner runner(2);
    runner.run([&](OpContext& context) { embed_context(context, params); }, {&out});
    for (std::int64_t token = 0; token < kTokens; ++token) {
      for (std::int64_t c = 0; c < out.cols(); ++c) {
        const std::int64_t field = c / kWidth;
        const float want = field < kFields ? table.get(categorical[token * kFields + field], c % kWidth) : 0.0f;
        ASSERT_EQ(out.get(token, c), want) << token << "," << c;
      }
    }
  }
}

TEST(EmbedContext, RefusesWrongParameters) {
  Random random(32);
  const ContextProblem x(random, DType::kF32, kRagged, 4, 4);
  Runner runner;
  const auto refusal = [&](const std::function<void(EmbedContextParams&)>& change) {
    EmbedContextParams params = x.params();
    change(params);
    return runner.refusal([&](OpContext& context) { embed_context(context, params); });
  };
  EXPECT_EQ(refusal([](auto&) {}), "");
  EXPECT_EQ(refusal([](auto& p) { p.fields[0].index = 3; }),
            "[embed_context] got a field of columns 3 to 4 of codes, want columns within 0 to 3. Correct the field.");
  EXPECT_NE(refusal([](auto& p) { p.fields[2].width = 5; }), "");
  EXPECT_NE(refusal([](auto& p) { p.fields[1].table.width = 4; }), "");
  EXPECT_NE(refusal([](auto& p) { p.fields.push_back(p.fields[0]); }), "");
  EXPECT_NE(refusal([](auto& p) { p.categorical = nullptr; }), "");
  EXPECT_NE(refusal([](auto& p) { p.out.dtype = DType::kE4M3; }), "");
}

TEST(ScatterContext, AddsThePositionAndRoundsOnce) {
  Random random(33);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const auto& [positioned, width, padding] :
         {std::tuple{false, 67, 1}, {true, 67, 1}, {false, 64, 8}, {true, 64, 8}, {true, 2312, 8}}) {
      const std::int64_t tokens = 300, live = 297;
      const TestMatrix x = random_matrix(random, dtype, tokens, width, 1.0f, 2 * padding);
      const TestMatrix table = random_matrix(random, dtype, 9, width);
      const TestArray<std::int32_t> positions = random_ids(random, tokens, 9);
      TestArray<std::int32_t> rows(tokens);
      std::iota(rows.begin(), rows.end(), 5);
      std::shuffle(rows.begin(), rows.end(), random);
      const TestArray<std::int32_t> count({static_cast<std::int32_t>(live)});
      TestMatrix out(dtype, tokens + 8, width, padding);
      const ScatterContextParams params{.x = x.view(),
                                        .position_table = positioned ? table_of(table) : EmbeddingTable{},
                                        .positions = positions.get(),
                                        .rows = rows.get(),
                                        .out = out.view(),
                                        .tokens = {tokens, count.get()}};
      Runner runner(2);
      runner.run([=](OpContext& context) { scatter_context(context, params); }, {&out});
      std::vector<bool> written(static_cast<std::size_t>(out.rows()));
      for (std::int64_t i = 0; i < live; ++i) {
        written[static_cast<std::size_t>(rows[i])] = true;
        for (std::int64_t c = 0; c < width; ++c) {
          const float position = positioned ? table.get(positions[i], c) : 0.0f;
          ASSERT_EQ(out.get(rows[i], c), rounded(dtype, x.get(i, c) + position));
        }
      }
      for (std::int64_t r = 0; r < out.rows(); ++r) {
        if (written[static_cast<std::size_t>(r)]) continue;
        for (const unsigned char byte : out.row_bytes(r)) ASSERT_EQ(byte, kPoison);
      }
    }
  }
}

TEST(EmbedStep, LooksUpCodesOrBos) {
  Random random(34);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const auto& [rows, width, padding] :
         {std::tuple{0, 65, 3}, {1, 65, 3}, {13, 65, 3}, {512, 65, 3}, {1, 64, 8}, {512, 64, 8}, {13, 2056, 8}}) {
      for (const bool positioned : {false, true}) {
        for (const bool bos : {false, true}) {
          const TestMatrix table = random_matrix(random, dtype, 17, width);
          const TestMatrix position = random_matrix(random, dtype, 1, width);
          const TestArray<std::int32_t> codes = random_ids(random, std::max(rows * 3, 1), 17);
          const TestArray<std::int32_t> live({static_cast<std::int32_t>(rows - rows / 5)});
          TestMatrix h(dtype, rows, width, padding);
          const EmbedStepParams params{.table = table.data(),
                                       .table_rows = 17,
                                       .codes = bos ? nullptr : codes.get() + 1,
                                       .code_stride = 3,
                                       .position = positioned ? position.data() : nullptr,
                                       .h = h.view(),
                                       .rows = {rows, live.get()}};
          Runner runner(2);
          runner.run([=](OpContext& context) { embed_step(context, params); }, {&h});
          for (std::int64_t r = 0; r < live[0]; ++r) {
            for (std::int64_t c = 0; c < width; ++c) {
              const float embedding = table.get(bos ? 0 : codes[r * 3 + 1], c);
              ASSERT_EQ(h.get(r, c), rounded(dtype, embedding + (positioned ? position.get(0, c) : 0.0f)));
            }
          }
          expect_poison(h, live[0]);
        }
      }
    }
  }
}

TEST(EmbedStep, RefusesWrongParameters) {
  Random random(35);
  const TestMatrix table = random_matrix(random, DType::kF32, 2, 4);
  TestMatrix h(DType::kF32, 3, 4);
  Runner runner;
  const auto refusal = [&](const EmbedStepParams& params) {
    return runner.refusal([&](OpContext& context) { embed_step(context, params); });
  };
  EXPECT_EQ(refusal({.table = table.data(), .table_rows = 2, .h = h.view(), .rows = {3, nullptr}}), "");
  EXPECT_EQ(refusal({.table_rows = 2, .h = h.view(), .rows = {3, nullptr}}),
            "[embed_step] got no table, want an array. Pass its address.");
  EXPECT_NE(refusal({.table = table.data(), .table_rows = 2, .h = h.view(), .rows = {4, nullptr}}), "");
  EXPECT_NE(refusal({.table = table.data(), .table_rows = 0, .h = h.view(), .rows = {3, nullptr}}), "");
}

}  // namespace
}  // namespace onerec::test
