#include "backends/cuda/one_row_attention.h"

#include "backends/cuda/attention_tensors.h"
#include "backends/cuda/kernels/one_row_attention.cuh"
#include "backends/cuda/launch.h"

namespace onerec::cuda {
namespace {

using kernels::ContextTensors;
using kernels::OneRowArguments;

constexpr std::int64_t kLargestGrid = 65535;  // along y and z
// Heads of a group read their keys each for itself, from L2. From here on tensor cores, which read them once, are taken
// to be quicker; not measured.
constexpr std::int64_t kMostRereadBytes = std::int64_t{32} << 20;
// Contexts up to this size are asked for ahead of time; larger ones would push each other out of L2.
constexpr std::int64_t kMostPrefetchBytes = std::int64_t{16} << 20;
constexpr std::int64_t kFewestSplitTokens = 128;
// Blocks per multiprocessor up to which contexts are split: enough for all to end at about the same time.
constexpr std::int64_t kMostBlocksEach = 8;

std::int64_t token_bytes(const ConstMatrix& context) {
  return context.cols * static_cast<std::int64_t>(size_of(context.dtype));
}

// How many tokens to ask for at a time: the copy engine takes about as long for 2 KB as for 8.
int tokens_together(const CrossAttentionParams& p) {
  constexpr int kMost = 4;
  const bool side_by_side = p.k.stride == p.k.cols && p.v.stride == p.v.cols;
  return side_by_side && p.tokens_capacity % kMost == 0 ? kMost : 1;
}

// A power of two. Depends on capacities only.
int choose_splits(const CrossAttentionParams& p, int multiprocessors) {
  const std::int64_t most_blocks = kMostBlocksEach * multiprocessors;
  std::int64_t splits = 1;
  while (splits < kernels::kMostContextSplits && p.batch * p.heads * splits * 2 <= most_blocks &&
         p.max_request_tokens >= splits * 2 * kFewestSplitTokens) {
    splits *= 2;
  }
  return static_cast<int>(splits);
}

template <int kHeadDim, ContextTensors kContext, int kCluster>
void launch_cluster(Stream& stream, const CrossAttentionParams& p, const OneRowArguments& arguments) {
  launch(stream, "cross_attention", kernels::one_row_attention<kHeadDim, kContext, kCluster>,
         {.grid = dim3(kCluster, static_cast<unsigned>(p.heads), static_cast<unsigned>(p.batch)),
          .block = dim3(kernels::kOneRowThreads),
          .shared_bytes = kernels::OneRowTile<kHeadDim, kContext>::kSharedBytes},
         arguments);
}

template <int kHeadDim, ContextTensors kContext>
void launch_context(Stream& stream, const CrossAttentionParams& p, const OneRowArguments& arguments, int cluster) {
  switch (cluster) {
    case 8:
      return launch_cluster<kHeadDim, kContext, 8>(stream, p, arguments);
    case 4:
      return launch_cluster<kHeadDim, kContext, 4>(stream, p, arguments);
    case 2:
      return launch_cluster<kHeadDim, kContext, 2>(stream, p, arguments);
    default:
      return launch_cluster<kHeadDim, kContext, 1>(stream, p, arguments);
  }
}

template <int kHeadDim>
void launch_head(Stream& stream, const CrossAttentionParams& p, const OneRowArguments& arguments, int cluster) {
  if (arguments.k == arguments.v && arguments.k_stride == arguments.v_stride) {
    launch_context<kHeadDim, ContextTensors::kShared>(stream, p, arguments, cluster);
  } else {
    launch_context<kHeadDim, ContextTensors::kSeparate>(stream, p, arguments, cluster);
  }
}

}  // namespace

bool is_one_row_shape(const CrossAttentionParams& p) {
  const bool rereads = p.heads != p.kv_heads;
  const std::int64_t reread_bytes = p.batch * p.max_request_tokens * p.heads * p.head_dim * 2;
  return p.max_request_rows == 1 && p.q.dtype == DType::kBF16 && (p.head_dim == 64 || p.head_dim == 128) &&
         p.heads <= kLargestGrid && p.batch <= kLargestGrid && (!rereads || reread_bytes <= kMostRereadBytes);
}

void one_row_attention(Stream& stream, const CrossAttentionParams& p, const DeviceLimits& limits) {
  const int splits = choose_splits(p, limits.multiprocessors);
  OneRowArguments arguments{attention_tensors<kernels::bf16>(p)};
  arguments.codes = static_codes(p.quantized);
  arguments.group_reciprocal = kernels::head_reciprocal(static_cast<std::uint32_t>(p.heads / p.kv_heads));
  arguments.splits = splits;
  arguments.scale = p.scale;
  const std::int64_t context_bytes = p.tokens_capacity * token_bytes(p.k) * (p.k.data == p.v.data ? 1 : 2);
  if (context_bytes <= kMostPrefetchBytes) {
    arguments.prefetch_tokens = tokens_together(p);
    arguments.prefetch_pieces = p.tokens_capacity / arguments.prefetch_tokens;
    arguments.prefetch_bytes = static_cast<std::uint32_t>(token_bytes(p.k) * arguments.prefetch_tokens);
  }
  const int cluster = limits.clusters ? splits : 1;
  if (p.head_dim == 64) {
    launch_head<64>(stream, p, arguments, cluster);
  } else {
    launch_head<128>(stream, p, arguments, cluster);
  }
}

}  // namespace onerec::cuda
