#include "ops/self_attention.h"

#include <algorithm>

#include "backends/cuda/alignment.h"
#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/kernels/self_attention.cuh"
#include "backends/cuda/launch.h"

namespace onerec::cuda {
namespace {

static_assert(kernels::kMaxKeys == kMaxLevels);

constexpr const char* kName = "self_attention";
constexpr std::uint32_t kThreads = 256;
constexpr int kFewKeys = 4;

LaunchShape shape_of(const SelfAttentionParams& p, std::int64_t lanes, int multiprocessors) {
  constexpr std::int64_t kResidentBlocks = 8;
  const std::int64_t heads_per_block = kThreads / lanes;
  const std::int64_t blocks = (p.rows.capacity * p.heads + heads_per_block - 1) / heads_per_block;
  return {static_cast<std::uint32_t>(std::min(blocks, kResidentBlocks * multiprocessors)), kThreads};
}

bool fits_vectors(const SelfAttentionParams& p) {
  const std::int64_t elements = 16 / static_cast<std::int64_t>(size_of(p.out.dtype));
  bool fits = p.head_dim % elements == 0 && p.head_dim / elements <= kernels::kWarp && rows_at_vectors(p.out) &&
              p.rows.capacity * p.heads <= 0xffffffffLL;
  for (int s = 0; s <= p.step; ++s) fits = fits && rows_at_vectors(p.qkv[static_cast<std::size_t>(s)]);
  return fits;
}

template <class T, int kLanes>
void launch_lanes(Stream& stream, const SelfAttentionParams& p, const kernels::SelfAttentionArguments& arguments,
                  int multiprocessors) {
  const LaunchShape shape = shape_of(p, kLanes, multiprocessors);
  if (arguments.keys <= kFewKeys) {
    launch(stream, kName, kernels::self_attention_kernel<T, kLanes, kFewKeys>, shape, arguments);
  } else {
    launch(stream, kName, kernels::self_attention_kernel<T, kLanes, kernels::kMaxKeys>, shape, arguments);
  }
}

template <class T>
void attend(Stream& stream, const SelfAttentionParams& p, const kernels::SelfAttentionArguments& arguments,
            int multiprocessors) {
  if (!fits_vectors(p)) {
    return launch(stream, kName, kernels::self_attention_plain_kernel<T>, shape_of(p, kernels::kWarp, multiprocessors),
                  arguments);
  }
  const std::int64_t vectors = p.head_dim / kernels::kVector<T>;
  if (vectors <= 8) return launch_lanes<T, 8>(stream, p, arguments, multiprocessors);
  if (vectors <= 16) return launch_lanes<T, 16>(stream, p, arguments, multiprocessors);
  launch_lanes<T, 32>(stream, p, arguments, multiprocessors);
}

}  // namespace

void CudaBackend::self_attention(Stream& stream, const SelfAttentionParams& p) {
  kernels::SelfAttentionArguments arguments{.rows = p.rows.capacity,
                                            .count = p.rows.count,
                                            .keys = p.step + 1,
                                            .heads = static_cast<std::uint32_t>(p.heads),
                                            .group = static_cast<std::uint32_t>(p.heads / p.kv_heads),
                                            .head_dim = static_cast<std::int32_t>(p.head_dim),
                                            .key_column = p.heads * p.head_dim,
                                            .value_column = (p.heads + p.kv_heads) * p.head_dim,
                                            .scale = p.scale,
                                            .out = p.out.data,
                                            .out_stride = p.out.stride};
  for (int s = 0; s <= p.step; ++s) {
    const auto at = static_cast<std::size_t>(s);
    arguments.qkv[s] = p.qkv[at].data;
    arguments.stride[s] = p.qkv[at].stride;
    arguments.ancestry[s] = p.ancestry[at];
  }
  if (p.out.dtype == DType::kF32) {
    attend<float>(stream, p, arguments, limits_.multiprocessors);
  } else {
    attend<kernels::bf16>(stream, p, arguments, limits_.multiprocessors);
  }
}

}  // namespace onerec::cuda
