// Where the values of a context's tokens lie once they are E4M3 codes: transposed, the tokens of a request in groups.
// Nothing but arithmetic, so that device code may include it.
#pragma once

#include <cstdint>

namespace onerec {

// Tokens of a request whose values lie in columns of their own.
inline constexpr std::int64_t kTokenGroup = 32;

constexpr std::int64_t whole_token_groups(std::int64_t tokens) {
  return (tokens + kTokenGroup - 1) / kTokenGroup * kTokenGroup;
}

// The column at which the values of request `b` begin, whose first token is `first` among those of all requests. Every
// request has whole groups, so that its columns depend on no later request.
constexpr std::int64_t value_begin(std::int64_t first, std::int64_t b) {
  return whole_token_groups(first) + kTokenGroup * b;
}

// Columns that hold the values of `tokens` tokens of `batch` requests, however they are spread.
constexpr std::int64_t value_columns(std::int64_t tokens, std::int64_t batch) { return value_begin(tokens, batch); }

// The place of token r of a group in it: the order in which a warp holds the scores that tensor cores hand it, so that
// they go into the product with the values as they are. A bijection of 0 .. 31.
constexpr std::int64_t token_place(std::int64_t r) {
  const std::int64_t half = r / 16;
  const std::int64_t eight = r % 16 / 8;
  const std::int64_t pair = r % 8 / 2;
  return 16 * half + 4 * pair + 2 * eight + r % 2;
}

// The column of token n of a request whose values begin at column `begin`.
constexpr std::int64_t value_column(std::int64_t begin, std::int64_t n) {
  return begin + n / kTokenGroup * kTokenGroup + token_place(n % kTokenGroup);
}

}  // namespace onerec
