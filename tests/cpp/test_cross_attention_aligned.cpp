// Cross-attention of the shapes that tensor cores take: BF16, heads of 64 and 128, rows at multiples of 16 bytes, long
// and ragged contexts. Against float64.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <utility>

#include "support/aligned_attention.h"

namespace onerec::test {
namespace {

using Shape = AttentionShape;
using Problem = AttentionProblem;

TEST(CrossAttentionAligned, OneTile) {
  Random random(1);
  for (const std::int64_t head_dim : attention_head_dims()) {
    for (const bool shared : {true, false}) {
      check_attention_shape({{1}, {1}, 1, 1, head_dim, shared}, random);
      check_attention_shape({{64}, {128}, 1, 1, head_dim, shared}, random);
      check_attention_shape({{65}, {127}, 2, 2, head_dim, shared, 3, 40}, random);
    }
  }
}

TEST(CrossAttentionAligned, SeveralTiles) {
  Random random(2);
  for (const std::int64_t head_dim : attention_head_dims()) {
    for (const bool shared : {true, false}) {
      // Up to four tiles there is one split.
      check_attention_shape({{70}, {129}, 1, 1, head_dim, shared, 0, 5}, random);
      check_attention_shape({{9, 130}, {512, 300}, 1, 1, head_dim, shared, 1, 0}, random);
    }
  }
}

TEST(CrossAttentionAligned, GroupsShareTheirContext) {
  Random random(4);
  for (const std::int64_t head_dim : attention_head_dims()) {
    check_attention_shape({{1, 1, 1}, {200, 3, 130}, 14, 2, head_dim, true, 0, 9}, random);
    check_attention_shape({{31, 12}, {140, 129}, 10, 2, head_dim, true, 5, 60}, random);
    check_attention_shape({{13}, {257}, 5, 1, head_dim, false}, random);
    check_attention_shape({{1, 3}, {140, 20}, 64, 1, head_dim}, random);
    check_attention_shape({{2}, {20}, 65, 1, head_dim}, random);
  }
}

// More tiles of queries than multiprocessors, so that blocks take several: of both warpgroups and of one, with and
// without tokens, and none at all.
TEST(CrossAttentionAligned, BlocksTakeSeveralTilesOfQueries) {
  Random random(8);
  const std::int64_t requests = at_most_on_simt(200, 6);
  for (const std::int64_t head_dim : {64, 128}) {
    for (const bool shared : {true, false}) {
      Shape shape{.rows = {}, .tokens = {}, .heads = 2, .kv_heads = 2, .head_dim = head_dim, .shared_kv = shared};
      for (std::int64_t b = 0; b < requests; ++b) {
        const bool large = uniform(random, 0, 40) == 0;
        shape.rows.push_back(large ? uniform(random, 60, 200) : uniform(random, 0, 3));
        shape.tokens.push_back(uniform(random, 0, 5) == 0 ? 0 : uniform(random, 1, large ? 300 : 30));
      }
      check_attention_shape(shape, random);
    }
  }
  Shape grouped{.rows = {}, .tokens = {}, .heads = 14, .kv_heads = 2, .head_dim = 64};
  for (std::int64_t b = 0; b < requests; ++b) {
    grouped.rows.push_back(uniform(random, 0, 12) == 0 ? uniform(random, 8, 30) : uniform(random, 0, 2));
    grouped.tokens.push_back(uniform(random, 0, 20) == 0 ? 200 : uniform(random, 0, 5));
  }
  check_attention_shape(grouped, random);
}

TEST(CrossAttentionAligned, RaggedRequests) {
  Random random(5);
  for (int i = 0; i < at_most_on_simt(12, 2); ++i) {
    Shape shape;
    for (std::int64_t b = uniform(random, 1, 5); b > 0; --b) {
      shape.rows.push_back(uniform(random, 0, 90));
      shape.tokens.push_back(uniform(random, 0, 420));
    }
    shape.kv_heads = uniform(random, 1, 2);
    shape.heads = shape.kv_heads * uniform(random, 1, 3);
    shape.head_dim = uniform(random, 1, 2) * 64;
    shape.shared_kv = uniform(random, 0, 1) == 0;
    shape.spare_rows = uniform(random, 0, 70);
    shape.spare_tokens = uniform(random, 0, 700);
    check_attention_shape(shape, random);
  }
}

// The next request's tokens share the last tile of a request, whose rows must not see them.
TEST(CrossAttentionAligned, KeepsNonFiniteValuesInTheirRequest) {
  Random random(6);
  for (const std::int64_t head_dim : attention_head_dims()) {
    for (const float bad : {std::nanf(""), INFINITY, -INFINITY}) {
      Problem x({{20, 20, 20}, {150, 50, 140}, 2, 2, head_dim}, random);
      x.k.set(150 + 3, head_dim + 5, bad);
      x.run();
      for (std::int64_t r = 0; r < 60; ++r) {
        for (std::int64_t c = 0; c < 2 * head_dim; ++c) {
          const bool touched = r / 20 == 1 && c == head_dim + 5;
          const bool may_be = r / 20 == 1 && c >= head_dim;
          const bool finite = std::isfinite(x.out.get(r, c));
          ASSERT_TRUE(finite ? !touched : may_be) << r << ", " << c;
        }
      }
    }
  }
}

// Kernels may differ where no request has more than one row.
Shape one_row(std::vector<std::int64_t> rows, std::vector<std::int64_t> tokens, std::int64_t heads,
              std::int64_t kv_heads, std::int64_t head_dim) {
  return {.rows = std::move(rows),
          .tokens = std::move(tokens),
          .heads = heads,
          .kv_heads = kv_heads,
          .head_dim = head_dim,
          .max_rows = 1};
}

constexpr std::array kOneRowHeadDims = {std::int64_t{64}, std::int64_t{128}, std::int64_t{40}};

TEST(CrossAttentionAligned, OneRowOfOneRequest) {
  Random random(10);
  for (const std::int64_t head_dim : kOneRowHeadDims) {
    for (const std::int64_t tokens : {0, 1, 63, 512, 3000}) {
      if (tokens == 3000 && head_dim == 40) continue;  // no different from 512
      const std::int64_t heads = tokens == 512 ? at_most_on_simt(head_dim == 64 ? 10 : 14, 2) : tokens == 3000 ? 1 : 3;
      for (const bool shared : {true, false}) {
        Shape shape = one_row({1}, {tokens}, heads, heads, head_dim);
        shape.shared_kv = shared;
        check_attention_shape(shape, random);
        shape.spare_rows = 3;
        shape.spare_tokens = 300;
        check_attention_shape(shape, random);
      }
    }
  }
}

TEST(CrossAttentionAligned, OneRowOfEveryRequest) {
  Random random(11);
  for (const std::int64_t head_dim : kOneRowHeadDims) {
    for (const std::int64_t requests : {std::int64_t{3}, at_most_on_simt(32, 5), at_most_on_simt(90, 8)}) {
      for (const bool shared : {true, false}) {
        const std::int64_t heads = requests == 32 ? 3 : at_most_on_simt(11, 2);
        Shape shape = one_row({}, {}, heads, heads, head_dim);
        for (std::int64_t b = 0; b < requests; ++b) {
          shape.rows.push_back(uniform(random, 0, 5) == 0 ? 0 : 1);
          shape.tokens.push_back(uniform(random, 0, b % 4 == 0 && b < 32 ? 300 : 20));
        }
        shape.shared_kv = shared;
        shape.spare_rows = uniform(random, 0, 4);
        shape.spare_tokens = uniform(random, 0, 900);
        check_attention_shape(shape, random);
      }
    }
  }
}

TEST(CrossAttentionAligned, OneRowOfGroups) {
  Random random(12);
  for (const std::int64_t head_dim : kOneRowHeadDims) {
    for (const std::int64_t group : {2, 7, 16}) {
      check_attention_shape(one_row({1}, {at_most_on_simt(1000, 300)}, group, 1, head_dim), random);
      check_attention_shape(one_row({1, 0, 1}, {70, 3, 200}, group * 2, 2, head_dim), random);
    }
  }
  // So much to read again for every head that other kernels may be quicker.
  const std::vector<std::int64_t> tokens(static_cast<std::size_t>(at_most_on_simt(40, 2)), at_most_on_simt(500, 20));
  check_attention_shape(one_row(std::vector<std::int64_t>(tokens.size(), 1), tokens, 14, 2, 128), random);
}

TEST(CrossAttentionAligned, OneRowKeepsNonFiniteValuesInItsRequest) {
  Random random(13);
  for (const std::int64_t head_dim : kOneRowHeadDims) {
    for (const float bad : {std::nanf(""), INFINITY, -INFINITY}) {
      for (const std::int64_t spare_tokens : {0, 600}) {  // few and many splits
        Shape shape = one_row({1, 1, 1}, {150, 50, 140}, 2, 2, head_dim);
        shape.spare_tokens = spare_tokens;
        Problem x(shape, random);
        x.k.set(150 + 3, head_dim + 5, bad);
        x.run();
        for (std::int64_t r = 0; r < 3; ++r) {
          for (std::int64_t c = 0; c < 2 * head_dim; ++c) {
            const bool touched = r == 1 && c == head_dim + 5;
            const bool may_be = r == 1 && c >= head_dim;
            const bool finite = std::isfinite(x.out.get(r, c));
            ASSERT_TRUE(finite ? !touched : may_be) << r << ", " << c;
          }
        }
      }
    }
  }
}

TEST(CrossAttentionAligned, OneRowFollowsTheLargestScore) {
  Random random(14);
  for (const float slope : {0.05f, -0.05f, 2.0f, -2.0f}) {
    for (const std::int64_t spare_tokens : {0, 600}) {
      Shape shape = one_row({1}, {500}, 1, 1, 64);
      shape.shared_kv = false;
      shape.spare_tokens = spare_tokens;
      Problem x(shape, random);
      x.q.set(0, 0, 8.0f);
      for (std::int64_t n = 0; n < 500; ++n) x.k.set(n, 0, slope * static_cast<float>(n));
      x.run();
      check_attention(x);
    }
  }
}

// Scores that grow or fall along the context, so that the running maximum changes with every tile.
TEST(CrossAttentionAligned, FollowsTheLargestScore) {
  Random random(7);
  for (const float slope : {0.05f, -0.05f, 2.0f, -2.0f}) {
    for (const std::int64_t spare_tokens : {0, 600}) {
      Problem x({{6}, {500}, 1, 1, 64, false, 0, spare_tokens}, random);
      for (std::int64_t r = 0; r < 6; ++r) x.q.set(r, 0, 8.0f);
      for (std::int64_t n = 0; n < 500; ++n) x.k.set(n, 0, slope * static_cast<float>(n));
      x.run();
      check_attention(x);
    }
  }
}

}  // namespace
}  // namespace onerec::test
