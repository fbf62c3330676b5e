#include "backends/cpu/pack.h"

#include <algorithm>

#include "backends/cpu/convert.h"
#include "backends/cpu/cpu_backend.h"
#include "core/error.h"
#include "core/float8.h"

namespace onerec::cpu {
namespace {

std::vector<float> dequantized_blocks(const LinearWeightSource& source) {
  const std::int64_t row_blocks = scale_blocks(source.outputs);
  const std::int64_t column_blocks = scale_blocks(source.inputs);
  std::vector<float> values(static_cast<std::size_t>(source.experts * source.outputs * source.inputs));
  const auto* codes = static_cast<const std::uint8_t*>(source.values);
  for (std::int64_t row = 0; row < source.experts * source.outputs; ++row) {
    const std::int64_t expert = row / source.outputs;
    const std::int64_t row_block = expert * row_blocks + row % source.outputs / kScaleBlock;
    for (std::int64_t block = 0; block < column_blocks; ++block) {
      const std::int64_t begin = row * source.inputs + block * kScaleBlock;
      const std::int64_t count = std::min(kScaleBlock, source.inputs - block * kScaleBlock);
      e4m3_to_f32(codes + begin, source.scales[row_block * column_blocks + block], values.data() + begin, count);
    }
  }
  return values;
}

// `source`'s values, or the values of its codes, in the type in which the library multiplies them.
std::unique_ptr<PackedMatrix> pack_values(const LinearWeightSource& source) {
  const auto pack = [&](DType dtype, const void* values) {
    return pack_matrix(dtype, source.experts, source.outputs, source.inputs, values);
  };
  if (source.format == WeightFormat::kFp8Block) return pack(DType::kF32, dequantized_blocks(source).data());

  const DType type = gemm_type(source.dtype);
  if (type == source.dtype) return pack(type, source.values);
  const std::int64_t count = source.experts * source.outputs * source.inputs;
  if (type == DType::kBF16) {
    std::vector<BFloat16> values(static_cast<std::size_t>(count));
    e4m3_to_bf16(static_cast<const std::uint8_t*>(source.values), values.data(), count);
    return pack(type, values.data());
  }
  std::vector<float> values(static_cast<std::size_t>(count));
  if (source.dtype == DType::kBF16) {
    bf16_to_f32(static_cast<const BFloat16*>(source.values), values.data(), count);
  } else {
    e4m3_to_f32(static_cast<const std::uint8_t*>(source.values), values.data(), count);
  }
  return pack(type, values.data());
}

}  // namespace

std::string CpuBackend::why_not(const LinearWeightSource& source) const {
  if (source.experts < 1 || source.outputs < 1 || source.inputs < 1) {
    return concat("linear weight '", source.name, "': got ", source.experts, " x [", source.outputs, ", ",
                  source.inputs, "], want no extent below 1");
  }
  const bool dense = source.format == WeightFormat::kDense;
  const bool fits = dense ? source.dtype == DType::kF32 || source.dtype == DType::kBF16 : source.dtype == DType::kE4M3;
  if (!fits) {
    return concat("linear weight '", source.name, "': got ", name_of(source.dtype), ", want ",
                  dense ? "float32 or bfloat16" : "float8_e4m3 codes", " in this format");
  }
  return "";
}

std::unique_ptr<LinearWeight> CpuBackend::pack_linear(const LinearWeightSource& source) {
  const std::string reason = why_not(source);
  check_packable(source, reason);
  auto weight = std::make_unique<CpuLinearWeight>();
  weight->describe(source);
  weight->matrix = pack_values(source);
  if (source.format == WeightFormat::kFp8Channel) {
    weight->scales.assign(source.scales, source.scales + source.experts * source.outputs);
  }
  weight->bytes = weight->matrix->bytes + weight->scales.size() * sizeof(float);
  return weight;
}

}  // namespace onerec::cpu
