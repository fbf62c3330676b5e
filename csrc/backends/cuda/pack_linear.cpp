#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/cuda_weight.h"
#include "core/error.h"

namespace onerec::cuda {
namespace {

constexpr std::int64_t kTensorCoreMultiple = 16;  // of N and K

// What no kernel can multiply.
std::string why_invalid(const LinearWeightSource& source) {
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

// What the tensor cores cannot multiply; the plain kernels could, at a fraction of their speed.
std::string why_slow(const LinearWeightSource& source) {
  if (source.dtype == DType::kF32) return "";
  const auto ragged = [&](const char* name, std::int64_t extent) {
    return concat("linear weight '", source.name, "': ", name, " = ", extent, " is not a multiple of ",
                  kTensorCoreMultiple, ", as ", name_of(source.dtype), " needs on a GPU");
  };
  if (source.inputs % kTensorCoreMultiple != 0) return ragged("K", source.inputs);
  if (source.outputs % kTensorCoreMultiple != 0) return ragged("N", source.outputs);
  return "";
}

std::int64_t scale_count(const LinearWeightSource& source) {
  switch (source.format) {
    case WeightFormat::kFp8Channel:
      return source.experts * source.outputs;
    case WeightFormat::kFp8Block:
      return source.experts * scale_blocks(source.outputs) * scale_blocks(source.inputs);
    case WeightFormat::kDense:
      break;
  }
  return 0;
}

std::unique_ptr<Buffer> upload(Device& device, Stream& stream, const void* data, std::size_t bytes) {
  std::unique_ptr<Buffer> buffer = device.allocate(bytes);
  stream.copy_to_device(buffer->data(), data, bytes);
  return buffer;
}

}  // namespace

std::string CudaBackend::why_not(const LinearWeightSource& source) const {
  const std::string invalid = why_invalid(source);
  return invalid.empty() && limits_.tensor_cores ? why_slow(source) : invalid;
}

std::unique_ptr<LinearWeight> CudaBackend::pack_linear(const LinearWeightSource& source) {
  const std::string invalid = why_invalid(source);
  check_packable(source, invalid);
  auto weight = std::make_unique<CudaWeight>();
  weight->describe(source);

  const auto count = static_cast<std::size_t>(source.experts * source.outputs * source.inputs);
  const auto scales = static_cast<std::size_t>(scale_count(source)) * sizeof(float);
  const std::unique_ptr<Stream> stream = device_->make_stream();
  weight->values_buffer = upload(*device_, *stream, source.values, count * size_of(source.dtype));
  if (scales > 0) weight->scales_buffer = upload(*device_, *stream, source.scales, scales);
  stream->synchronize();
  weight->bytes = count * size_of(source.dtype) + scales;
  return weight;
}

}  // namespace onerec::cuda
