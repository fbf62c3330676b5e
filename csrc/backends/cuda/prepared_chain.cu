#include "ops/prepared_chain.h"

#include <algorithm>
#include <bit>
#include <cstddef>

#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/kernels/prepared_chain.cuh"
#include "backends/cuda/launch.h"
#include "backends/cuda/plain_linear.h"
#include "backends/cuda/prepared_recipe.h"
#include "core/error.h"

namespace onerec::cuda {
namespace {

using kernels::PreparedChain;
using kernels::RowMaker;
using kernels::WeightKind;

constexpr const char* kName = "prepared_chain";
constexpr int kMaxRows = 4;
// With the static arrays, what a multiprocessor has.
constexpr std::int64_t kMaxSharedBytes = 200 * 1024;
// Whether a chain may start before the kernel ahead of it has ended: its first weights are then under way.
constexpr bool kOverlapped = true;

std::int64_t value_bytes(const LinearWeight& weight) { return static_cast<std::int64_t>(size_of(weight.dtype)); }

std::int64_t most_inputs(std::span<const PreparedLinearParams> links) {
  std::int64_t inputs = 0;
  for (const PreparedLinearParams& link : links) inputs = std::max(inputs, link.product.weight->inputs);
  return inputs;
}

PreparedChain chain_of(std::span<const PreparedLinearParams> links, std::uint32_t* barrier, int multiprocessors) {
  PreparedChain chain;
  for (const PreparedLinearParams& params : links) {
    kernels::ChainLink& link = chain.links[chain.count++];
    const Recipe recipe = recipe_of(params);
    link.product = small_linear_params(params.product, nullptr, multiprocessors);
    link.product.vectors = 1;
    link.from = recipe.source;
    link.maker = recipe.maker;
    link.log_parts = std::countr_zero(static_cast<unsigned>(link.product.split));
    if (recipe.maker != RowMaker::kNorm) link.from.members = kernels::kChainThreads;
  }
  chain.barrier = barrier;
  return chain;
}

template <WeightKind kKind, int kRows>
void run(Stream& stream, const PreparedChain& chain, std::int64_t inputs, int multiprocessors) {
  using Value = typename kernels::WeightTraits<kKind>::Value;
  const auto kernel = kernels::prepared_chain_kernel<kKind, kRows>;
  static const int resident = resident_blocks(kName, kernel, kernels::kChainBlock<kRows>, kMaxSharedBytes);
  ensure(resident >= 1, "prepared_chain does not fit on a multiprocessor");
  launch(stream, kName, kernel,
         {.grid = dim3(static_cast<unsigned>(multiprocessors)),
          .block = dim3(kernels::kChainBlock<kRows>),
          .shared_bytes = static_cast<std::size_t>(kernels::prepared_chain_bytes(inputs, sizeof(Value), kRows)),
          .cooperative = true,
          .overlapped = kOverlapped},
         chain);
}

template <WeightKind kKind>
void run_rows(Stream& stream, const PreparedChain& chain, std::int64_t inputs, int multiprocessors) {
  if (chain.links[0].product.rows == 1) return run<kKind, 1>(stream, chain, inputs, multiprocessors);
  run<kKind, kMaxRows>(stream, chain, inputs, multiprocessors);
}

}  // namespace

bool CudaBackend::fuses_prepared_chain(std::span<const PreparedLinearParams> links) const {
  if (!limits_.cooperative || links.empty() || links.size() > std::size_t{kernels::kMostLinks}) return false;
  const LinearParams& first = links[0].product;
  const WeightKind kind = weight_kind(*first.weight);
  if (kind != WeightKind::kFp8Channel && kind != WeightKind::kBf16) return false;
  const int rows = first.rows.capacity == 1 ? 1 : kMaxRows;
  const auto fits = [&](const PreparedLinearParams& link) {
    const LinearParams& product = link.product;
    const bool alike = weight_kind(*product.weight) == kind && product.y.dtype == DType::kBF16 &&
                       product.rows.capacity == first.rows.capacity && product.rows.count == first.rows.count;
    return alike && fuses_prepared_linear(link) &&
           kernels::chain_block_outputs(product.weight->outputs, limits_.multiprocessors) * rows <=
               kernels::kChainThreads;
  };
  return std::all_of(links.begin(), links.end(), fits) &&
         kernels::prepared_chain_bytes(most_inputs(links), value_bytes(*first.weight), rows) <= kMaxSharedBytes;
}

void CudaBackend::prepared_chain(Stream& stream, std::span<const PreparedLinearParams> links) {
  const PreparedChain chain = chain_of(links, grid_barrier(stream), limits_.multiprocessors);
  const std::int64_t inputs = most_inputs(links);
  if (weight_kind(*links[0].product.weight) == WeightKind::kBf16) {
    run_rows<WeightKind::kBf16>(stream, chain, inputs, limits_.multiprocessors);
  } else {
    run_rows<WeightKind::kFp8Channel>(stream, chain, inputs, limits_.multiprocessors);
  }
}

}  // namespace onerec::cuda
