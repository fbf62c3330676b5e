// Batches: what is refused, and the bucket a batch falls into.
#include <gtest/gtest.h>

#include <functional>

#include "core/error.h"
#include "engine/plan_io.h"

namespace onerec {
namespace {

// Two requests with 2 and 1 context tokens, widths 3-2 and 1-4.
struct Sample {
  std::vector<std::int32_t> codes = {0, 1, 2, 0, 1, 1};
  std::vector<std::int32_t> positions = {0, 1, 0};
  std::vector<std::int32_t> rows = {0, 1, 2};
  std::vector<std::int32_t> categorical = {4, 0, 3};
  std::vector<float> dense = {0.5f, 1.5f, 2.5f};
  std::vector<std::int32_t> context_offsets = {0, 2, 3};
  std::vector<std::int32_t> widths = {3, 2, 1, 4};
  std::vector<std::uint8_t> constrained = {1, 0};
  std::vector<std::int32_t> excluded = {0, 5, 2};
  std::vector<std::int32_t> excluded_offsets = {0, 2, 3};
  std::vector<std::int32_t> forced;
  InputSchema schema{.pathways = {{.items = true, .max_tokens = 4, .num_embeddings = {5}, .dense_columns = 1}},
                     .codebook_sizes = {3, 2}};
  BatchLimits limits{.max_batch = 2, .max_rows = 6, .max_context_tokens = 3, .max_excluded = 3};
  std::int64_t items = 6;

  Batch batch() const {
    return {.size = 2,
            .pathways = {{.tokens = 3,
                          .codes = codes.data(),
                          .positions = positions.data(),
                          .rows = rows.data(),
                          .categorical = categorical.data(),
                          .dense = dense.data()}},
            .context_offsets = context_offsets.data(),
            .widths = widths.data(),
            .constrained = constrained.data(),
            .excluded = excluded.data(),
            .excluded_offsets = excluded_offsets.data(),
            .forced = forced.empty() ? nullptr : forced.data()};
  }
  void check() const { check_batch(batch(), schema, items, limits); }
};

TEST(CheckBatch, AcceptsASoundBatch) { EXPECT_NO_THROW(Sample{}.check()); }

TEST(CheckBatch, RefusesEveryIndexThatAnOpWouldFollowOutOfBounds) {
  const std::pair<const char*, std::function<void(Sample&)>> damages[] = {
      {"code", [](Sample& s) { s.codes[3] = 2; }},
      {"code", [](Sample& s) { s.codes[2] = -1; }},
      {"position", [](Sample& s) { s.positions[0] = 4; }},
      {"row", [](Sample& s) { s.rows[2] = 3; }},
      {"given twice", [](Sample& s) { s.rows[2] = 1; }},
      {"categorical id", [](Sample& s) { s.categorical[1] = 5; }},
      {"context_offsets", [](Sample& s) { s.context_offsets = {0, 3, 2}; }},
      {"context tokens", [](Sample& s) { s.limits.max_context_tokens = 2; }},
      {"beam width", [](Sample& s) { s.widths[1] = 0; }},
      {"beams after level", [](Sample& s) { s.widths[3] = 5; }},
      {"requests", [](Sample& s) { s.limits.max_batch = 1; }},
      {"constrained",
       [](Sample& s) {
         s.items = 0;
         s.excluded_offsets = {0, 0, 0};
       }},
      {"ascend", [](Sample& s) { s.excluded = {5, 0, 2}; }},
      {"ascend", [](Sample& s) { s.excluded[1] = 6; }},
      {"excluded items", [](Sample& s) { s.limits.max_excluded = 2; }},
      {"one width", [](Sample& s) { s.forced.assign(8, 0); }},
      {"got code",
       [](Sample& s) {
         s.widths = {2, 2, 1, 1};
         s.forced = {0, 0, 0, 2, 0, 0};
       }},
  };
  for (const auto& [message, damage] : damages) {
    Sample sample;
    damage(sample);
    try {
      sample.check();
      FAIL() << "accepted a batch with a bad " << message;
    } catch (const ArgumentError& error) {
      EXPECT_NE(std::string(error.what()).find(message), std::string::npos) << error.what();
    }
  }
}

TEST(PlanShape, HoldsTheBatchWithAtMostHalfAsMuchAgain) {
  const Sample sample;
  const PlanShape shape = plan_shape(sample.batch(), 2);
  EXPECT_EQ(shape.pass.batch, 2);
  EXPECT_EQ(shape.pass.rows, (std::vector<std::int64_t>{2, 4}));
  EXPECT_EQ(shape.results, 6);
  EXPECT_EQ(shape.pass.max_request_rows, 4);
  EXPECT_EQ(shape.pass.pathway_tokens, (std::vector<std::int64_t>{3}));
  EXPECT_EQ(shape.pass.max_request_tokens, 2);
  EXPECT_EQ(shape.excluded, 3);
  for (std::int32_t width = 1; width < 3000; ++width) {
    Sample wide;
    wide.widths = {width, 1, 1, 1};
    const std::int64_t capacity = plan_shape(wide.batch(), 2).pass.rows[1];
    EXPECT_GE(capacity, width + 1);
    EXPECT_LE(2 * capacity, 3 * (width + 1));
  }
}

}  // namespace
}  // namespace onerec
