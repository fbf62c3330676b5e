#include "ops/prepared_linear.h"

#include "backends/cuda/alignment.h"
#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/cuda_weight.h"
#include "backends/cuda/kernels/prepared_linear.cuh"
#include "backends/cuda/launch.h"
#include "backends/cuda/plain_linear.h"
#include "backends/cuda/row_launch.h"
#include "core/float8.h"

namespace onerec::cuda {
namespace {

using kernels::RowMaker;
using kernels::RowSource;
using kernels::SmallLinearParams;
using kernels::WeightKind;

constexpr const char* kName = "prepared_linear";
// Every block makes all rows: with more of them, kernels of their own are quicker.
constexpr std::int64_t kMaxRows = 4;
constexpr std::int64_t kMaxSharedBytes = 96 * 1024;

// What a block makes its rows from; members = 0: it cannot.
struct Recipe {
  RowMaker maker = RowMaker::kCopy;
  DType dtype = DType::kF32;
  RowSource source = {};
};

// As many threads as the vectors need that a thread holds.
template <RowMaker kMaker>
int members_for(std::int64_t vectors) {
  constexpr std::int64_t kMost = std::int64_t{kernels::kSmallLinearThreads} * kernels::kMadeVectors<kMaker>;
  return vectors <= kMost ? kernels::kSmallLinearThreads : 0;
}

Recipe recipe_of(const RmsNormParams& p) {
  // The threads of the kernel that rms_norm() would launch.
  const RowPlan plan = plan_whole_rows(p.width / vector_elements(p.x.dtype), kernels::kMadeVectors<RowMaker::kNorm>);
  const auto team = static_cast<std::int64_t>(plan.lanes == 0 ? plan.threads : static_cast<std::uint32_t>(plan.lanes));
  const bool fits = p.groups == 1 && at_vector(p.gamma) && rows_at_vectors(p.x) &&
                    team <= kernels::kSmallLinearThreads && plan.per_thread <= kernels::kMadeVectors<RowMaker::kNorm>;
  return {RowMaker::kNorm,
          p.x.dtype,
          {.rows = p.x.data,
           .stride = p.x.stride,
           .gamma = p.gamma,
           .inverse_width = 1.0f / static_cast<float>(p.width),
           .eps = p.eps,
           .code_scale = norm_code_scale(p.gamma_magnitude),
           .members = fits ? static_cast<int>(team) : 0}};
}

Recipe recipe_of(const SwigluParams& p) {
  const std::int64_t elements = vector_elements(p.gate_up.dtype);
  const bool fits = rows_at_vectors(p.gate_up) && p.width % elements == 0;
  return {RowMaker::kSwiglu,
          p.gate_up.dtype,
          {.rows = p.gate_up.data,
           .stride = p.gate_up.stride,
           .members = fits ? members_for<RowMaker::kSwiglu>(p.width / elements) : 0}};
}

Recipe recipe_of(const QuantizeParams& p) {
  return {RowMaker::kCopy,
          p.x.dtype,
          {.rows = p.x.data,
           .stride = p.x.stride,
           .members = rows_at_vectors(p.x) ? members_for<RowMaker::kCopy>(p.x.cols / vector_elements(p.x.dtype)) : 0}};
}

Recipe recipe_of(const PreparedLinearParams& params) {
  return std::visit([](const auto& input) { return recipe_of(input); }, params.input);
}

template <WeightKind kKind, class Y, int kRows, class T, RowMaker kMaker>
void run(Stream& stream, const SmallLinearParams& product, const RowSource& source, int multiprocessors) {
  using Value = typename kernels::WeightTraits<kKind>::Value;
  // All blocks are there at once and have as many groups of outputs as the others, if they can.
  const std::int64_t groups = kernels::small_linear_blocks(product.outputs, product.split);
  const std::int64_t resident = std::int64_t{multiprocessors} * kernels::kPreparedBlocks<kMaker, kRows>;
  const std::int64_t turns = (groups + resident - 1) / resident;
  const dim3 grid(static_cast<unsigned>((groups + turns - 1) / turns));
  const std::int64_t bytes = kernels::prepared_linear_bytes(product.inputs, sizeof(Value), kRows);
  launch(stream, kName, kernels::prepared_linear_kernel<kKind, Y, kRows, T, kMaker>,
         {grid, dim3(kernels::kSmallLinearThreads), static_cast<std::size_t>(bytes)}, product, source);
}

template <WeightKind kKind, class Y, class T>
void run_maker(Stream& stream, const SmallLinearParams& product, const Recipe& recipe, int multiprocessors) {
  const auto run_rows = [&](auto maker) {
    if (product.rows == 1) return run<kKind, Y, 1, T, maker.value>(stream, product, recipe.source, multiprocessors);
    run<kKind, Y, kMaxRows, T, maker.value>(stream, product, recipe.source, multiprocessors);
  };
  switch (recipe.maker) {
    case RowMaker::kNorm:
      return run_rows(std::integral_constant<RowMaker, RowMaker::kNorm>{});
    case RowMaker::kSwiglu:
      return run_rows(std::integral_constant<RowMaker, RowMaker::kSwiglu>{});
    case RowMaker::kCopy:
      if constexpr (kKind == WeightKind::kFp8Channel) {
        run_rows(std::integral_constant<RowMaker, RowMaker::kCopy>{});
      }
  }
}

}  // namespace

bool CudaBackend::fuses_prepared_linear(const PreparedLinearParams& params) const {
  const LinearParams& product = params.product;
  const LinearWeight& weight = *product.weight;
  const std::int64_t rows = product.rows.capacity;
  if (rows < 1 || rows > kMaxRows || weight.experts != 1 || weight.format == WeightFormat::kFp8Block) return false;
  const Recipe recipe = recipe_of(params);
  const bool coded = weight.format == WeightFormat::kFp8Channel;
  const bool known =
      coded ? recipe.dtype == DType::kBF16 && product.y.dtype == DType::kBF16
            : recipe.dtype == weight.dtype && (weight.dtype == DType::kBF16 || product.y.dtype == DType::kF32);
  const auto value_bytes = static_cast<std::int64_t>(size_of(weight.dtype));
  return known && recipe.source.members > 0 && weight.inputs * value_bytes % 16 == 0 &&
         at_vector(weight_of(&weight).values()) &&
         kernels::prepared_linear_bytes(weight.inputs, value_bytes, static_cast<int>(rows)) <= kMaxSharedBytes;
}

void CudaBackend::prepared_linear(Stream& stream, const PreparedLinearParams& params) {
  const SmallLinearParams product = small_linear_params(params.product, nullptr, limits_.multiprocessors);
  const Recipe recipe = recipe_of(params);
  const bool float_sums = params.product.y.dtype == DType::kF32;
  switch (weight_kind(*params.product.weight)) {
    case WeightKind::kFloat:
      return run_maker<WeightKind::kFloat, float, float>(stream, product, recipe, limits_.multiprocessors);
    case WeightKind::kBf16:
      return float_sums
                 ? run_maker<WeightKind::kBf16, float, kernels::bf16>(stream, product, recipe, limits_.multiprocessors)
                 : run_maker<WeightKind::kBf16, kernels::bf16, kernels::bf16>(stream, product, recipe,
                                                                              limits_.multiprocessors);
    default:
      return run_maker<WeightKind::kFp8Channel, kernels::bf16, kernels::bf16>(stream, product, recipe,
                                                                              limits_.multiprocessors);
  }
}

}  // namespace onerec::cuda
