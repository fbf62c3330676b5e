// Where the values of a context's tokens lie once they are codes.
#include "ops/context_tokens.h"

#include <gtest/gtest.h>

#include <array>
#include <set>

namespace onerec {
namespace {

static_assert(value_columns(0, 0) == 0 && value_columns(33, 2) == 128 && value_begin(32, 1) == 64);

TEST(ContextTokens, PlacesFollowTheOrderOfAWarp) {
  const std::array<std::int64_t, 16> half = {0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15};
  std::set<std::int64_t> taken;
  for (std::int64_t r = 0; r < kTokenGroup; ++r) {
    EXPECT_EQ(token_place(r), r / 16 * 16 + half[static_cast<std::size_t>(r % 16)]) << r;
    taken.insert(token_place(r));
  }
  EXPECT_EQ(taken.size(), 32u);
  EXPECT_EQ(*taken.begin(), 0);
  EXPECT_EQ(*taken.rbegin(), 31);
}

// Three requests of every mix of these lengths: each has whole groups to itself, within the columns of any capacity
// that holds the tokens.
TEST(ContextTokens, RequestsShareNoGroup) {
  const std::array<std::int64_t, 8> lengths = {0, 1, 31, 32, 33, 63, 64, 100};
  for (const std::int64_t a : lengths) {
    for (const std::int64_t b : lengths) {
      for (const std::int64_t c : lengths) {
        std::set<std::int64_t> columns;
        std::int64_t first = 0;
        std::int64_t expected = 0;
        std::int64_t end = 0;
        for (const auto& [request, tokens] : {std::pair{0, a}, {1, b}, {2, c}}) {
          const std::int64_t begin = value_begin(first, request);
          EXPECT_EQ(begin % kTokenGroup, 0);
          EXPECT_GE(begin, end) << a << " " << b << " " << c;
          end = begin + whole_token_groups(tokens);
          for (std::int64_t n = 0; n < tokens; ++n) {
            const std::int64_t column = value_column(begin, n);
            EXPECT_GE(column, begin + n / kTokenGroup * kTokenGroup);
            EXPECT_LT(column, begin + (n / kTokenGroup + 1) * kTokenGroup);
            columns.insert(column);
          }
          first += tokens;
          expected += tokens;
        }
        EXPECT_EQ(static_cast<std::int64_t>(columns.size()), expected) << a << " " << b << " " << c;
        EXPECT_LE(end, value_columns(first, 3));
        EXPECT_LE(value_columns(first, 3), value_columns(first + 1, 3));
      }
    }
  }
}

}  // namespace
}  // namespace onerec
