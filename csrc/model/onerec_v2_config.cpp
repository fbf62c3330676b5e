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

Precision Precision::parse(const std::string& precision, const std::string& experts) {
  require(experts == "block" || experts == "channel", "[precision] got experts '", experts,
          "', want 'block' or 'channel'.");
  if (precision == "fp32") return {};
  if (precision == "bf16") return {.activation = DType::kBF16};
  require(precision == "fp8", "[precision] got '", precision, "', want 'fp32', 'bf16' or 'fp8'.");
  return {.activation = DType::kBF16,
          .linear = WeightFormat::kFp8Channel,
          .experts = experts == "block" ? WeightFormat::kFp8Block : WeightFormat::kFp8Channel};
}

}  // namespace onerec
