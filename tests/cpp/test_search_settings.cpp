// Numbers of results that requests leave open, and the first request that asks for what it cannot have.
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "engine/search_settings.h"

namespace onerec {
namespace {

using Ints = std::vector<std::int64_t>;

TEST(SearchSettings, FindsTheFirstWidthOutOfRange) {
  EXPECT_EQ(first_wrong_width(Ints{1, 9, 9, 1, 5, 5}.data(), 3, 2, 9), -1);
  EXPECT_EQ(first_wrong_width(Ints{1, 9, 9, 0, 10, 5}.data(), 3, 2, 9), 1);
  EXPECT_EQ(first_wrong_width(Ints{1, 9, 9, 9, 5, 10}.data(), 3, 2, 9), 2);
  EXPECT_EQ(first_wrong_width(nullptr, 0, 2, 9), -1);
}

TEST(SearchSettings, FillsInWhatIsOpen) {
  const Ints widths = {9, 3, 9, 8};
  Ints results = {kUnset, kUnset};
  EXPECT_EQ(fill_num_results(widths.data(), 2, 2, {.max_width = 9, .default_results = 5}, results.data()), -1);
  EXPECT_EQ(results, (Ints{3, 5}));
  results = {1, kUnset};
  EXPECT_EQ(
      fill_num_results(widths.data(), 2, 2, {.max_width = 9, .num_results = 8, .default_results = 5}, results.data()),
      -1);
  EXPECT_EQ(results, (Ints{1, 8}));
}

TEST(SearchSettings, FindsTheFirstNumberOfResultsOutOfRange) {
  const Ints widths = {9, 3, 9, 8, 9, 9};
  const CallSettings settings = {.max_width = 9, .num_results = 4, .default_results = 5};
  Ints results = {3, 8, kUnset};
  EXPECT_EQ(fill_num_results(widths.data(), 3, 2, settings, results.data()), -1);
  results = {3, 0, 10};
  EXPECT_EQ(fill_num_results(widths.data(), 3, 2, settings, results.data()), 1);
  results = {kUnset, 1, 1};
  EXPECT_EQ(fill_num_results(widths.data(), 3, 2, settings, results.data()), 0);
  EXPECT_EQ(results[0], 4);
}

}  // namespace
}  // namespace onerec
