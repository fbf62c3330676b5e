#include "backends/cuda/gemm/dense_gemm.h"

#include <limits>
#include <optional>

#include "backends/cuda/alignment.h"
#include "backends/cuda/cuda_weight.h"
#include "backends/cuda/gemm/gemm_select.h"
#include "core/error.h"

namespace onerec::cuda {
namespace {

constexpr std::int64_t kInstructionMultiple = 16;  // of N and K

std::optional<GemmTypes> types_of(const LinearParams& p) {
  const bool to_bf16 = p.y.dtype == DType::kBF16;
  switch (p.weight->dtype) {
    case DType::kE4M3:
      if (p.weight->format == WeightFormat::kFp8Channel && to_bf16) return GemmTypes::kFp8ToBf16;
      return std::nullopt;
    case DType::kBF16:
      return to_bf16 ? GemmTypes::kBf16ToBf16 : GemmTypes::kBf16ToF32;
    default:
      return std::nullopt;
  }
}

bool takes_epilogue(GemmTypes types, const LinearParams& p) {
  if (p.activation != Activation::kNone && types != GemmTypes::kBf16ToBf16) return false;
  return p.residual.data == nullptr || types != GemmTypes::kBf16ToF32;
}

bool takes_addresses(const LinearParams& p) {
  return rows_at_vectors(p.x.values) && rows_at_vectors(p.y) &&
         (p.residual.data == nullptr || rows_at_vectors(p.residual)) && at_vector(weight_of(p.weight).values());
}

GemmShape shape_of(const LinearParams& p, int multiprocessors) {
  return {.types = *types_of(p),
          .rows = p.rows.capacity,
          .outputs = p.weight->outputs,
          .inputs = p.weight->inputs,
          .multiprocessors = multiprocessors};
}

}  // namespace

bool dense_gemm_takes(const LinearParams& params) {
  const std::optional<GemmTypes> types = types_of(params);
  constexpr std::int64_t kLargest = std::numeric_limits<int>::max();
  return types && takes_epilogue(*types, params) && takes_addresses(params) &&
         params.weight->outputs % kInstructionMultiple == 0 && params.weight->inputs % kInstructionMultiple == 0 &&
         params.rows.capacity > 0 && params.rows.capacity <= kLargest && params.weight->outputs <= kLargest &&
         params.weight->inputs <= kLargest;
}

int choose_gemm(const LinearParams& params, int multiprocessors) {
  return select_gemm(shape_of(params, multiprocessors));
}

std::string gemm_name(int config) {
  if (config == kPlainGemm) return "plain";
  const GemmConfig& c = kGemmConfigs[config];
  const char* types = c.types == GemmTypes::kFp8ToBf16    ? "fp8_bf16"
                      : c.types == GemmTypes::kBf16ToBf16 ? "bf16_bf16"
                                                          : "bf16_f32";
  return concat(types, " ", c.tile_rows, "x", c.tile_outputs, "x", c.tile_bytes / input_bytes(c.types), " cluster ",
                c.cluster, c.schedule == GemmSchedule::kPingpong ? " pingpong" : " cooperative");
}

}  // namespace onerec::cuda
