// E4M3 codes of a ragged context, laid out as ops/context_codes.h wants them.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "core/error.h"
#include "ops/context_codes.h"
#include "support/runner.h"
#include "support/tensors.h"

namespace onerec::test {

// Whether this device attends to codes for such heads. One that does not tells its user what to do.
inline bool attends_to_codes(Runner& runner, std::int64_t heads, std::int64_t kv_heads, std::int64_t head_dim) {
  try {
    runner.backend().check_context_codes(heads, kv_heads, head_dim);
  } catch (const ArgumentError& error) {
    EXPECT_NE(std::string(error.what()).find("kv_cache_dtype='auto'"), std::string::npos) << error.what();
    return false;
  }
  return true;
}

struct TestContextCodes {
  TestMatrix keys;
  TestMatrix values;
  float key_scale = 1.0f;
  float value_scale = 1.0f;

  TestContextCodes(std::int64_t tokens, std::int64_t batch, std::int64_t width)
      : keys(DType::kE4M3, tokens, width, 16 + (16 - width % 16) % 16),
        values(DType::kE4M3, width, value_columns(tokens, batch), 16) {}

  ContextCodes view() const { return {keys.view(), values.view(), key_scale, value_scale}; }

  // The code of column c of token n of request b, whose first token is `first`, as it lies in `values`.
  float value(std::int64_t first, std::int64_t b, std::int64_t n, std::int64_t c) const {
    return values.get(c, value_column(value_begin(first, b), n));
  }

  // Any codes for the tokens that `offsets` tell of, 0 behind a request's last; what lies elsewhere stays NaN.
  void fill_random(Random& random, const TestArray<std::int32_t>& offsets, float deviation) {
    for (std::int64_t b = 0; b + 1 < offsets.size(); ++b) {
      const std::int64_t first = offsets[b];
      const std::int64_t tokens = offsets[b + 1] - first;
      for (std::int64_t n = 0; n < whole_token_groups(tokens); ++n) {
        for (std::int64_t c = 0; c < keys.cols(); ++c) {
          if (n < tokens) keys.set(first + n, c, normal(random, deviation));
          values.set(c, value_column(value_begin(first, b), n), n < tokens ? normal(random, deviation) : 0.0f);
        }
      }
    }
  }
};

}  // namespace onerec::test
