#include "backends/cuda/gemm/dense_gemm.h"

#include <cstdint>
#include <limits>
#include <optional>

#include "backends/cuda/alignment.h"
#include "backends/cuda/cuda_weight.h"
#include "backends/cuda/gemm/direct_tiles.h"
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
  return at_vector(p.bias) && rows_at_vectors(p.x.values) && rows_at_vectors(p.y) &&
         (p.residual.data == nullptr || rows_at_vectors(p.residual)) && at_vector(weight_of(p.weight).values());
}

GemmShape shape_of(const LinearParams& p, int multiprocessors) {
  return {.types = *types_of(p),
          .rows = p.rows.capacity,
          .outputs = p.weight->outputs,
          .inputs = p.weight->inputs,
          .multiprocessors = multiprocessors,
          .ours = p.x.pending.squares != nullptr};
}

std::string name_of(const GemmConfig& c) {
  const char* types = c.types == GemmTypes::kFp8ToBf16    ? "fp8_bf16"
                      : c.types == GemmTypes::kBf16ToBf16 ? "bf16_bf16"
                                                          : "bf16_f32";
  const std::string schedule = c.schedule == GemmSchedule::kPingpong      ? "pingpong"
                               : c.schedule == GemmSchedule::kCooperative ? "cooperative"
                               : c.schedule == GemmSchedule::kDirect      ? "direct"
                                                                          : concat("split ", c.depth_parts);
  return concat(types, " ", c.tile_rows, "x", c.tile_outputs, "x", c.tile_bytes / input_bytes(c.types), " cluster ",
                c.cluster, " ", schedule);
}

// With fewer rows, what is to be cleared and the wait for the last tiles cost more than is gained (tune_gemms).
constexpr std::int64_t kLeastCodedRows = 4096;

bool codes_at_vectors(const Operand& codes) {
  constexpr std::uintptr_t kCodes = 8;  // stored at a time
  return codes.values.data != nullptr && reinterpret_cast<std::uintptr_t>(codes.values.data) % kCodes == 0 &&
         static_cast<std::uintptr_t>(codes.values.stride) % kCodes == 0;
}

bool may_be_coded(const LinearSwigluParams& p) {
  return p.weight->format == WeightFormat::kFp8Channel && p.quantized.scale_kind == ScaleKind::kPerRow &&
         p.rows.capacity >= kLeastCodedRows;
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

// A few rows are multiplied by kernels that make their input. Many keep the direct kernel busy, which has neither the
// registers nor the time to code a norm, and CUTLASS's, which do not read what is pending. In between, what CUTLASS is
// quicker at by more than a norm takes is left to it.
constexpr std::int64_t kLeastPendingRows = 5;
constexpr std::int64_t kLeastOfOurs = 129;
constexpr std::int64_t kMostPendingRows = 768;

bool pending_gemm_takes(const LinearWeight& weight, std::int64_t rows, int multiprocessors) {
  if (weight.format != WeightFormat::kFp8Channel || rows < kLeastPendingRows || rows > kMostPendingRows ||
      weight.outputs % (2 * kDirectMultiple) != 0 || weight.inputs % kInstructionMultiple != 0) {
    return false;
  }
  const int config = select_gemm({.types = GemmTypes::kFp8ToBf16,
                                  .rows = rows,
                                  .outputs = weight.outputs,
                                  .inputs = weight.inputs,
                                  .multiprocessors = multiprocessors});
  return rows >= kLeastOfOurs || (config != kPlainGemm && is_ours(kGemmConfigs[config].schedule));
}

bool norm_gemm_takes(const LinearNormParams& p, int multiprocessors) {
  const Operand& codes = p.norm.quantized;
  return codes.pending.squares != nullptr && p.previous.pending.squares != nullptr && p.norm.y.data == nullptr &&
         p.norm.quantized_blocks.values.data == nullptr && p.product.residual.data != nullptr &&
         rows_at_vectors(codes.values) && at_vector(p.norm.gamma) && dense_gemm_takes(p.product) &&
         kGemmConfigs[choose_norm_gemm(p, multiprocessors)].schedule == GemmSchedule::kSplit;
}

int choose_norm_gemm(const LinearNormParams& p, int multiprocessors) {
  GemmShape shape = shape_of(p.product, multiprocessors);
  shape.ours = true;
  return select_gemm(shape);
}

bool swiglu_gemm_takes(const LinearSwigluParams& p) {
  const LinearWeight& weight = *p.weight;
  constexpr std::int64_t kLargest = std::numeric_limits<int>::max();
  return weight.format == WeightFormat::kFp8Channel && p.gate_up.dtype == DType::kBF16 &&
         p.width % kDirectMultiple == 0 && weight.inputs % kInstructionMultiple == 0 && p.rows.capacity > 0 &&
         p.rows.capacity <= kLargest && weight.outputs <= kLargest && weight.inputs <= kLargest &&
         rows_at_vectors(p.x.values) && rows_at_vectors(p.gate_up) && (p.y.data == nullptr || rows_at_vectors(p.y)) &&
         at_vector(p.bias) && at_vector(weight_of(p.weight).values()) && at_vector(weight_of(p.weight).scales());
}

bool swiglu_static_codes_gemm_takes(const LinearSwigluParams& p) {
  return codes_at_vectors(p.quantized) && p.quantized.scale_kind == ScaleKind::kPerRow &&
         p.quantized.static_scale > 0.0f && swiglu_gemm_takes(p);
}

bool swiglu_codes_gemm_takes(const LinearSwigluParams& p) {
  return codes_at_vectors(p.quantized) && may_be_coded(p) && swiglu_gemm_takes(p);
}

std::size_t swiglu_codes_gemm_workspace(const LinearSwigluParams& p) {
  if (!may_be_coded(p) || p.rows.capacity > std::numeric_limits<int>::max()) return 0;
  const kernels::DirectProgress progress(static_cast<int>(p.rows.capacity));
  return static_cast<std::size_t>(progress.words()) * sizeof(std::uint32_t);
}

Matrix hidden_in_gate_up(const LinearSwigluParams& p) {
  Matrix hidden = p.gate_up;
  hidden.cols = p.width;
  return hidden;
}

int choose_swiglu_gemm(const LinearSwigluParams& params, int multiprocessors) {
  return select_swiglu_gemm({.types = GemmTypes::kFp8ToBf16,
                             .rows = params.rows.capacity,
                             .outputs = params.weight->outputs,
                             .inputs = params.weight->inputs,
                             .multiprocessors = multiprocessors});
}

std::string gemm_name(int config) { return config == kPlainGemm ? "plain" : name_of(kGemmConfigs[config]); }

std::string swiglu_gemm_name(int config) { return name_of(kSwigluConfigs[config]) + " swiglu"; }

}  // namespace onerec::cuda
