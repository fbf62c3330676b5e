// What the problems of cross-attention tests are to the op.
#pragma once

#include <cstdint>

#include "ops/cross_attention.h"

namespace onerec::test {

// All but the capacities of a single request. A problem has q, k, values(), out, their offsets and a `shape`.
template <class Problem>
CrossAttentionParams attention_params(const Problem& x, float scale) {
  return {.q = x.q.view(),
          .k = x.k.view(),
          .v = x.values().view(),
          .context_offsets = x.context_offsets.get(),
          .row_offsets = x.row_offsets.get(),
          .out = x.out.view(),
          .batch = static_cast<std::int64_t>(x.shape.rows.size()),
          .rows_capacity = x.q.rows(),
          .tokens_capacity = x.k.rows(),
          .heads = x.shape.heads,
          .kv_heads = x.shape.kv_heads,
          .head_dim = x.shape.head_dim,
          .scale = scale};
}

}  // namespace onerec::test
