#include "model/onerec_v2_config.h"

#include "core/error.h"

namespace onerec {

std::int64_t PathwayConfig::num_categorical() const {
  std::int64_t count = 0;
  for (const auto& field : fields) count += field.categorical ? 1 : 0;
  return count;
}

std::int64_t PathwayConfig::num_dense() const {
  std::int64_t columns = 0;
  for (const auto& field : fields) columns += field.categorical ? 0 : field.width;
  return columns;
}

std::int64_t OneRecV2Config::pathway_input_dim(const PathwayConfig& pathway) const {
  std::int64_t columns = pathway.items ? levels() * embed_dim : 0;
  for (const auto& field : pathway.fields) columns += field.width;
  return columns;
}

Precision Precision::parse(const std::string& precision, const std::string& experts, const std::string& kv_cache) {
  require(experts == "block" || experts == "channel", "[precision] got experts '", experts,
          "', want 'block' or 'channel'.");
  require(kv_cache == "auto" || kv_cache == "fp8", "[precision] got kv_cache '", kv_cache, "', want 'auto' or 'fp8'.");
  if (precision == "fp32") {
    require(kv_cache == "auto",
            "[precision] got kv_cache 'fp8' with 'fp32', want 'bf16' or 'fp8'. Choose one, or keep kv_cache 'auto'.");
    return {};
  }
  const DType context = kv_cache == "fp8" ? DType::kE4M3 : DType::kBF16;
  if (precision == "bf16") return {.activation = DType::kBF16, .context = context};
  require(precision == "fp8", "[precision] got '", precision, "', want 'fp32', 'bf16' or 'fp8'.");
  return {.activation = DType::kBF16,
          .linear = WeightFormat::kFp8Channel,
          .experts = experts == "block" ? WeightFormat::kFp8Block : WeightFormat::kFp8Channel,
          .context = context};
}

}  // namespace onerec
