#include "ops/self_attention.h"

#include <algorithm>

#include "backends/cuda/alignment.h"
#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/kernels/self_attention.cuh"
#include "backends/cuda/launch.h"
#include "backends/cuda/row_launch.h"

namespace onerec::cuda {
namespace {

static_assert(kernels::kMaxKeys == kMaxLevels);

constexpr const char* kName = "self_attention";
constexpr std::int64_t kMostSharedBytes = 64 * 1024;
constexpr std::int64_t kWarp = kernels::kWarp;

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// How a block goes through the heads of a row.
struct HeadPlan {
  std::int64_t lanes = 0;  // of a head; 0: the plain kernel
  std::int64_t rounds = 1;
  std::int64_t threads = 256;
  std::int64_t shared_bytes = 0;
};

// Whether a warp may take a row, and there are enough rows to keep all of them busy.
template <class T>
bool takes_warps(const HeadPlan& plan, const kernels::SelfAttentionArguments& p, int multiprocessors) {
  constexpr int kWarps = kernels::kAttentionWarpThreads / kernels::kWarp * kernels::kAttentionWarpBlocks;
  return std::is_same_v<T, kernels::bf16> && (plan.lanes == 8 || plan.lanes == 16) &&
         p.head_dim == plan.lanes * kernels::kVector<T> && (p.keys == 2 || p.keys == 3) &&
         p.heads * plan.lanes <= kWarp * kernels::kAttentionWarpVectors && p.rows >= kWarps * multiprocessors;
}

// Depends on the kind of output only where rows of one are not aligned: codes are then those of the stored values, to
// the bit.
HeadPlan plan_of(const SelfAttentionParams& p) {
  HeadPlan plan;
  plan.shared_bytes = p.heads * kernels::kMaxKeys * static_cast<std::int64_t>(sizeof(float));
  const std::int64_t elements = vector_elements(p.qkv[static_cast<std::size_t>(p.step)].dtype);
  const std::int64_t vectors = p.head_dim / elements;
  bool fits = p.head_dim % elements == 0 && vectors <= kWarp;
  for (int s = 0; s <= p.step; ++s) fits = fits && rows_at_vectors(p.qkv[static_cast<std::size_t>(s)]);
  const Matrix& codes = p.quantized.values;
  fits = fits && (codes.data == nullptr ? rows_at_vectors(p.out) : rows_aligned(codes, elements));
  if (!fits) return plan;
  const std::int64_t lanes = vectors <= 8 ? 8 : vectors <= 16 ? 16 : 32;
  const std::int64_t rounds = divide_up(p.heads * lanes, kernels::kSelfAttentionThreads);
  const std::int64_t threads = divide_up(divide_up(p.heads, rounds) * lanes, kWarp) * kWarp;
  const std::int64_t bytes = rounds * threads * 16;
  if (bytes > kMostSharedBytes) return plan;
  return {lanes, rounds, threads, codes.data == nullptr ? 0 : bytes};
}

template <class T, int kLanes>
void launch_lanes(Stream& stream, const LaunchShape& shape, const kernels::SelfAttentionArguments& arguments) {
  if (arguments.keys <= kernels::kFewKeys) {
    launch(stream, kName, kernels::self_attention_kernel<T, kLanes, kernels::kFewKeys>, shape, arguments);
  } else {
    launch(stream, kName, kernels::self_attention_kernel<T, kLanes, kernels::kMaxKeys>, shape, arguments);
  }
}

template <int kLanes, int kKeys>
void launch_warps(Stream& stream, const kernels::SelfAttentionArguments& arguments, int multiprocessors) {
  using kernels::bf16;
  const LaunchShape shape = {static_cast<std::uint32_t>(kernels::kAttentionWarpBlocks * multiprocessors),
                             kernels::kAttentionWarpThreads, kernels::PartsAhead<bf16, kLanes, kKeys>::kBytes};
  launch(stream, kName, kernels::self_attention_warp_kernel<bf16, kLanes, kKeys>, shape, arguments);
}

template <int kLanes>
void launch_warps(Stream& stream, const kernels::SelfAttentionArguments& arguments, int multiprocessors) {
  arguments.keys == 2 ? launch_warps<kLanes, 2>(stream, arguments, multiprocessors)
                      : launch_warps<kLanes, 3>(stream, arguments, multiprocessors);
}

template <class T>
void attend(Stream& stream, const HeadPlan& plan, const kernels::SelfAttentionArguments& arguments,
            int multiprocessors) {
  if (takes_warps<T>(plan, arguments, multiprocessors)) {
    return plan.lanes == 8 ? launch_warps<8>(stream, arguments, multiprocessors)
                           : launch_warps<16>(stream, arguments, multiprocessors);
  }
  // A block for every row, but no more than the device holds at a time.
  const std::int64_t resident = kernels::resident_attention_blocks<T>(arguments.keys) * kernels::kSelfAttentionThreads;
  const std::int64_t blocks =
      std::min<std::int64_t>(arguments.rows, resident / plan.threads * static_cast<std::int64_t>(multiprocessors));
  const LaunchShape shape = {static_cast<std::uint32_t>(blocks), static_cast<std::uint32_t>(plan.threads),
                             static_cast<std::size_t>(plan.shared_bytes)};
  switch (plan.lanes) {
    case 8:
      return launch_lanes<T, 8>(stream, shape, arguments);
    case 16:
      return launch_lanes<T, 16>(stream, shape, arguments);
    case 32:
      return launch_lanes<T, 32>(stream, shape, arguments);
    default:
      return launch(stream, kName, kernels::self_attention_plain_kernel<T>, shape, arguments);
  }
}

}  // namespace

void CudaBackend::self_attention(Stream& stream, const SelfAttentionParams& p) {
  const HeadPlan plan = plan_of(p);
  kernels::SelfAttentionArguments arguments{.count = p.rows.count,
                                            .rows = static_cast<std::int32_t>(p.rows.capacity),
                                            .keys = p.step + 1,
                                            .heads = static_cast<std::int32_t>(p.heads),
                                            .group = static_cast<std::int32_t>(p.heads / p.kv_heads),
                                            .head_dim = static_cast<std::int32_t>(p.head_dim),
                                            .key_column = p.heads * p.head_dim,
                                            .value_column = (p.heads + p.kv_heads) * p.head_dim,
                                            .scale = p.scale,
                                            .rounds = static_cast<std::int32_t>(plan.rounds),
                                            .out = p.out.data,
                                            .out_stride = p.out.stride,
                                            .quantized = code_rows(p.quantized),
                                            .settled = p.settled};
  for (int s = 0; s <= p.step; ++s) {
    const auto at = static_cast<std::size_t>(s);
    arguments.qkv[s] = p.qkv[at].data;
    arguments.stride[s] = p.qkv[at].stride;
    arguments.ancestry[s] = p.ancestry[at];
  }
  if (p.qkv[static_cast<std::size_t>(p.step)].dtype == DType::kF32) {
    attend<float>(stream, plan, arguments, limits_.multiprocessors);
  } else {
    attend<kernels::bf16>(stream, plan, arguments, limits_.multiprocessors);
  }
}

}  // namespace onerec::cuda
