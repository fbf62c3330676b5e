// A task is one tile of the queries that share a context: some rows of a request times the heads of one group. Its
// scores against the whole context stay in cache between the two products, so the softmax needs no running maximum,
// which would round p differently.

#include "ops/cross_attention.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "backends/cpu/block_matmul.h"
#include "backends/cpu/convert.h"
#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/parallel.h"
#include "backends/cpu/rows.h"
#include "core/arena.h"
#include "core/bfloat16.h"
#include "core/multiversion.h"

namespace onerec::cpu {
namespace {

// Context tokens whose values are multiplied at a time: they stay in the first-level cache for all rows of a tile.
constexpr std::int64_t kTokenChunk = 128;
// Queries of a tile; fewer where there would be too few tiles for the threads.
constexpr std::int64_t kLargestTile = 128;
constexpr std::int64_t kSmallestTile = 12;
// About 5 microseconds: less is not worth another thread.
constexpr std::int64_t kProductsPerThread = 200'000;
// From here on the values of a context are read often enough to be laid side by side first: a head's columns alone map
// to few sets of the first-level cache.
constexpr std::int64_t kQueriesWorthCopying = 16;

ONEREC_MULTIVERSION void divide_f32(const float* sums, float divisor, std::int64_t count, float* out) {
  for (std::int64_t i = 0; i < count; ++i) out[i] = sums[i] / divisor;
}

ONEREC_MULTIVERSION void divide_bf16(const float* sums, float divisor, std::int64_t count, BFloat16* out) {
  for (std::int64_t i = 0; i < count; ++i) out[i] = to_bfloat16(sums[i] / divisor);
}

void divide_row(DType dtype, const float* sums, float divisor, std::int64_t count, void* out) {
  if (dtype == DType::kF32) {
    divide_f32(sums, divisor, count, static_cast<float*>(out));
  } else {
    divide_bf16(sums, divisor, count, static_cast<BFloat16*>(out));
  }
}

struct Scratch {
  std::int64_t head_cols;  // head_dim, padded
  std::int64_t tile;       // queries of a task
  std::int64_t tiles;      // of a request and group
  std::int64_t floats;     // from one thread's arrays to the next one's
  float* panels;           // K transposed, [tokens / kPanel][head_dim][kPanel]
  float* context;          // K or V as FP32, [tokens, head_cols]
  float* queries;          // [tile, head_dim]
  float* scores;           // [tile, padded tokens]
  float* sums;             // [tile, head_cols]
  float* totals;           // [tile]: the denominators

  Scratch(Arena& arena, const CrossAttentionParams& p, int threads) : head_cols(pad_columns(p.head_dim)) {
    const std::int64_t group_queries = std::max<std::int64_t>(p.max_request_rows * (p.heads / p.kv_heads), 1);
    const std::int64_t groups = std::max<std::int64_t>(p.batch * p.kv_heads, 1);
    // Two tasks per thread or more, all of about one size.
    const std::int64_t most = std::clamp(group_queries * groups / (2 * threads), kSmallestTile, kLargestTile);
    tiles = (group_queries + most - 1) / most;
    tile = (group_queries + tiles - 1) / tiles;

    const std::int64_t tokens = (p.max_request_tokens + kPanel - 1) / kPanel * kPanel;
    const std::size_t begin = arena.used();
    panels = arena.allocate_array<float>(tokens * p.head_dim);
    context = arena.allocate_array<float>(tokens * head_cols);
    queries = arena.allocate_array<float>(tile * p.head_dim);
    scores = arena.allocate_array<float>(tile * tokens);
    sums = arena.allocate_array<float>(tile * head_cols);
    totals = arena.allocate_array<float>(tile);
    floats = static_cast<std::int64_t>((arena.used() - begin) / sizeof(float));
    arena.allocate_array<float>(floats * (threads - 1));
  }

  // The matrix kernels read FP32 in whole blocks of columns.
  static bool is_converted(const CrossAttentionParams& p) {
    return p.q.dtype != DType::kF32 || p.head_dim % kColumnBlock != 0;
  }

  Scratch of_thread(int thread) const {
    Scratch mine = *this;
    for (float** part : {&mine.panels, &mine.context, &mine.queries, &mine.scores, &mine.sums, &mine.totals}) {
      *part += thread * floats;
    }
    return mine;
  }
};

void to_f32_row(DType dtype, const void* x, std::int64_t count, float* out) {
  if (dtype == DType::kF32) {
    std::memcpy(out, x, static_cast<std::size_t>(count) * sizeof(float));
  } else {
    bf16_to_f32(static_cast<const BFloat16*>(x), out, count);
  }
}

// A thread's view of the context of one request and group.
class Context {
 public:
  Context(const CrossAttentionParams& p, const Scratch& scratch) : p_(p), scratch_(scratch) {}

  const float* values() const { return values_; }
  std::int64_t values_stride() const { return stride_; }

  // Keeps what it has if the last tile was of the same request and group. `queries`: how many there are in this tile.
  void load(std::int64_t b, std::int64_t group, std::int64_t queries) {
    if (b == request_ && group == group_) return;
    request_ = b;
    group_ = group;
    copies_ = Scratch::is_converted(p_) || queries >= kQueriesWorthCopying;
    const std::int64_t first = p_.context_offsets[b];
    const std::int64_t tokens = p_.context_offsets[b + 1] - first;
    read(p_.k, first, tokens);
    block_kernels().transpose(values_, stride_, tokens, p_.head_dim, scratch_.panels);
    if (p_.v.data != p_.k.data || p_.v.stride != p_.k.stride) read(p_.v, first, tokens);
  }

 private:
  // Points values_ at FP32 rows of this group's columns of `m`: the matrix itself, or a converted copy.
  void read(const ConstMatrix& m, std::int64_t first, std::int64_t tokens) {
    const ConstMatrix head = m.columns(group_ * p_.head_dim, p_.head_dim);
    if (!copies_) {
      values_ = head.row<float>(first);
      stride_ = head.stride;
      return;
    }
    for (std::int64_t n = 0; n < tokens; ++n) {
      float* row = scratch_.context + n * scratch_.head_cols;
      to_f32_row(head.dtype, row_at(head, first + n), p_.head_dim, row);
      std::fill(row + p_.head_dim, row + scratch_.head_cols, 0.0f);
    }
    values_ = scratch_.context;
    stride_ = scratch_.head_cols;
  }

  const CrossAttentionParams& p_;
  const Scratch& scratch_;
  std::int64_t request_ = -1;
  std::int64_t group_ = -1;
  bool copies_ = false;
  const float* values_ = nullptr;
  std::int64_t stride_ = 0;
};

// Query `i` of a group: head i % (heads of a group) of row i / (heads of a group).
std::size_t query_offset(const CrossAttentionParams& p, const ConstMatrix& m, std::int64_t first_row,
                         std::int64_t group, std::int64_t i) {
  const std::int64_t heads = p.heads / p.kv_heads;
  const std::int64_t element = (first_row + i / heads) * m.stride + (group * heads + i % heads) * p.head_dim;
  return static_cast<std::size_t>(element) * size_of(m.dtype);
}

// sums and totals of `queries` queries, whose FP32 values lie in scratch.
void attend(const CrossAttentionParams& p, const Scratch& scratch, const Context& context, std::int64_t queries,
            std::int64_t tokens) {
  const BlockKernels& kernels = block_kernels();
  const std::int64_t width = pad_columns(tokens);
  for (std::int64_t n = 0; n < width; n += kPanel) {
    kernels.multiply({.a = scratch.queries,
                      .a_stride = p.head_dim,
                      .b = scratch.panels + n * p.head_dim,
                      .b_stride = kPanel,
                      .c = scratch.scores + n,
                      .c_stride = width,
                      .rows = queries,
                      .cols = std::min(kPanel, width - n),
                      .inner = p.head_dim},
                     p.scale);
  }
  const auto softmax = p.q.dtype == DType::kF32 ? kernels.softmax_f32 : kernels.softmax_bf16;
  for (std::int64_t i = 0; i < queries; ++i) scratch.totals[i] = softmax(scratch.scores + i * width, tokens);

  std::fill_n(scratch.sums, queries * scratch.head_cols, 0.0f);
  for (std::int64_t n = 0; n < tokens; n += kTokenChunk) {
    kernels.accumulate({.a = scratch.scores + n,
                        .a_stride = width,
                        .b = context.values() + n * context.values_stride(),
                        .b_stride = context.values_stride(),
                        .c = scratch.sums,
                        .c_stride = scratch.head_cols,
                        .rows = queries,
                        .cols = scratch.head_cols,
                        .inner = std::min(kTokenChunk, tokens - n)});
  }
}

void run_tile(const CrossAttentionParams& p, const Scratch& scratch, Context& context, std::int64_t task) {
  const std::int64_t b = task / (p.kv_heads * scratch.tiles);
  const std::int64_t group = task / scratch.tiles % p.kv_heads;
  const std::int64_t begin = task % scratch.tiles * scratch.tile;
  const std::int64_t first_row = p.row_offsets[b];
  const std::int64_t live_queries = (p.row_offsets[b + 1] - first_row) * (p.heads / p.kv_heads);
  const std::int64_t queries = std::min(scratch.tile, live_queries - begin);
  if (queries <= 0) return;

  auto* out = static_cast<std::byte*>(p.out.data);
  const std::int64_t tokens = p.context_offsets[b + 1] - p.context_offsets[b];
  if (tokens == 0) {
    const std::size_t bytes = static_cast<std::size_t>(p.head_dim) * size_of(p.out.dtype);
    for (std::int64_t i = 0; i < queries; ++i) {
      std::memset(out + query_offset(p, p.out, first_row, group, begin + i), 0, bytes);
    }
    return;
  }

  const auto* q = static_cast<const std::byte*>(p.q.data);
  for (std::int64_t i = 0; i < queries; ++i) {
    to_f32_row(p.q.dtype, q + query_offset(p, p.q, first_row, group, begin + i), p.head_dim,
               scratch.queries + i * p.head_dim);
  }
  context.load(b, group, queries);
  attend(p, scratch, context, queries, tokens);
  for (std::int64_t i = 0; i < queries; ++i) {
    divide_row(p.out.dtype, scratch.sums + i * scratch.head_cols, scratch.totals[i], p.head_dim,
               out + query_offset(p, p.out, first_row, group, begin + i));
  }
}

// Multiplications of one of the two products.
std::int64_t products(const CrossAttentionParams& p) {
  std::int64_t pairs = 0;
  for (std::int64_t b = 0; b < p.batch; ++b) {
    const std::int64_t rows = p.row_offsets[b + 1] - p.row_offsets[b];
    pairs += rows * (p.context_offsets[b + 1] - p.context_offsets[b]);
  }
  return pairs * p.heads * p.head_dim;
}

}  // namespace

std::size_t CpuBackend::cross_attention_workspace(const CrossAttentionParams& params) const {
  Arena arena;
  Scratch(arena, params, device_.threads());
  return arena.used();
}

void CpuBackend::cross_attention(Stream& stream, const CrossAttentionParams& params, Workspace workspace) {
  Arena arena(workspace.data, workspace.bytes);
  const Scratch scratch(arena, params, device_.threads());
  submit(stream, [p = params, scratch] {
    const int threads = threads_for(products(p), kProductsPerThread);
    const std::int64_t tasks = p.batch * p.kv_heads * scratch.tiles;
    std::atomic<std::int64_t> next = 0;
    current_pool().run(threads, [&](int rank) {
      const Scratch mine = scratch.of_thread(rank);
      Context context(p, mine);
      for (std::int64_t task = next.fetch_add(1); task < tasks; task = next.fetch_add(1))
        run_tile(p, mine, context, task);
    });
  });
}

}  // namespace onerec::cpu
